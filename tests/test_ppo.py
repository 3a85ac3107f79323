"""PPO, in ppo.py and as a part of pofd.py: its losses by hand, and how they are used."""
import gymnasium as gym
import numpy as np
import pytest
import torch

from tiny import demonstrations, spy, tiny, train, weights

pytestmark = pytest.mark.parametrize("script", ["ppo", "pofd"])


@pytest.mark.parametrize("terminated, done, bootstrap, goes_on", [
    (0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0)])
def test_gae_across_the_end_of_an_episode_by_hand(script, terminated, done, bootstrap, goes_on):
    """Three steps. After the second the episode goes on, is truncated, or is terminated."""
    reward, value, next_value = [1.0, 10.0, 5.0], [2.0, 4.0, 6.0], [3.0, 7.0, 8.0]
    columns = reward, value, next_value, [0, terminated, 0], [0, done, 0]
    columns = [torch.tensor(column)[:, None] for column in columns]
    third = 5 + 0.5 * 8 - 6
    second = 10 + 0.5 * 7 * bootstrap - 4 + 0.5 * 0.9 * third * goes_on
    first = 1 + 0.5 * 3 - 2 + 0.5 * 0.9 * second
    advantage = tiny(script)[0].gae(*columns, 0.5, 0.9)
    assert advantage.flatten().tolist() == pytest.approx([first, second, third])


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.5, 2.0, -1.2 * 2.0, 0.0),  # good, and likely enough: nothing more to gain
    (0.5, 2.0, -0.5 * 2.0, -0.5 * 2.0),  # good and unlikely: make it likelier
    (1.5, -2.0, 1.5 * 2.0, 1.5 * 2.0),  # bad and likely: make it less so
    (0.5, -2.0, 0.8 * 2.0, 0.0)])  # bad, and unlikely enough
def test_clipped_surrogate_and_its_slope_by_hand(script, ratio, advantage, loss, slope):
    surrogate = tiny(script)[0].clipped_surrogate
    log_prob = torch.tensor([np.log(ratio) - 1, -1], dtype=torch.float32, requires_grad=True)
    result = surrogate(log_prob, torch.tensor([-1.0, -1.0]), torch.tensor([advantage, 0.0]), 0.2)
    result.backward()
    assert result.item() == pytest.approx(loss / 2, rel=1e-5)  # the mean of two
    assert log_prob.grad.tolist() == pytest.approx([slope / 2, 0], rel=1e-5)


def test_long_gradients_are_shortened_in_pofd_those_of_the_policy(script, monkeypatch):
    agents, norms = [], []
    spy(monkeypatch, tiny(script)[0], "make_batch", lambda *args: agents.append(args[2]))
    spy(monkeypatch, torch.optim.Adam, "step", lambda *_: norms.append(torch.stack([
        x.grad.norm() for name, x in agents[0].named_parameters()
        if x.grad is not None and (script == "ppo" or "critic" not in name)]).norm()))
    train(script, reward_scale=100.0)
    assert max(norms) == pytest.approx(0.5, abs=1e-3)


def test_ratio_is_one_on_the_first_minibatch_and_advantages_are_normalised(script, monkeypatch):
    calls = []
    spy(monkeypatch, tiny(script)[0], "clipped_surrogate", lambda _, *args: calls.append(args))
    demo = demonstrations(actions=np.ones((50, 2)))
    train(script, env_id="probes:TwoBox-v0", demo=demo, update_epochs=3, num_minibatches=2)
    assert len(calls) == 4 * 3 * 2
    for i, (log_prob, old_log_prob, advantage, *_) in enumerate(calls):
        off = advantage.mean().abs() + (advantage.std(correction=0) - 1).abs()
        assert off < 1e-3
        assert torch.allclose(log_prob, old_log_prob, atol=1e-5) == (i % 6 == 0)


def test_a_minibatch_of_one_step_is_learned_from(script):
    settings = dict(num_envs=1, num_steps=8, num_minibatches=8)
    before, after = (train(script, total_timesteps=n, **settings)[0] for n in (0, 64))
    assert all(parameter.isfinite().all() for parameter in after.parameters())
    assert weights(before) != weights(after)


def test_the_entropy_bonus_of_ppo_keeps_entropy_up(script):
    (_, without), (_, bonus) = (train(script, ent_coef=weight) for weight in (0.0, 1.0))
    assert (bonus[-1]["entropy"] > without[-1]["entropy"]) == (script == "ppo")


def test_raw_action_is_stored_and_the_executed_one_is_sent(script, monkeypatch):
    """In the bounds [10, 20] the policy's -1 is 10 and its 1 is 20."""
    sent, rows = [], []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda _, __, act: sent.append(act))
    spy(monkeypatch, tiny(script)[0], "make_batch", lambda _, rollout, *__: rows.extend(rollout))
    monkeypatch.setattr(tiny(script)[0], "evaluate", lambda *_: np.zeros(1))
    train(script, env_id="probes:FarBox-v0")
    raw = np.stack([row[1] for row in rows])
    assert (abs(raw) > 1).any() and np.stack(sent) == pytest.approx((15 + 5 * raw).clip(10, 20))
