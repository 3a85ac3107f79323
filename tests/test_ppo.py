"""PPO, in ppo.py and as a part of pofd.py: the losses by hand, the gradient, and values that are known."""

import copy
import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch

from tiny import spy, tiny, train

both = pytest.mark.parametrize("script", ["ppo", "pofd"])


@both
@pytest.mark.parametrize("terminated, done, bootstrap, goes_on", [(0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0)])
def test_gae_across_the_end_of_an_episode_by_hand(script, terminated, done, bootstrap, goes_on):
    """Three steps. After the second one the episode goes on, has been truncated, or has terminated."""
    columns = [1.0, 10.0, 5.0], [2.0, 4.0, 6.0], [3.0, 7.0, 8.0], [0, terminated, 0], [0, done, 0]
    columns = [torch.tensor(column)[:, None] for column in columns]
    third = 5 + 0.5 * 8 - 6
    second = 10 + 0.5 * 7 * bootstrap - 4 + 0.5 * 0.9 * third * goes_on
    first = 1 + 0.5 * 3 - 2 + 0.5 * 0.9 * second
    advantage = importlib.import_module(script).gae(*columns, 0.5, 0.9)
    assert advantage.flatten().tolist() == pytest.approx([first, second, third])


@both
@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    # slope: d loss / d log_prob = -ratio * advantage where the unclipped side is the minimum, else 0
    (1.5, 2.0, -1.2 * 2.0, 0.0),  # good, and likely enough: nothing more to gain
    (0.5, 2.0, -0.5 * 2.0, -0.5 * 2.0),  # good and unlikely: make it likelier
    (1.5, -2.0, 1.5 * 2.0, 1.5 * 2.0),  # bad and likely: make it less so
    (0.5, -2.0, 0.8 * 2.0, 0.0),  # bad, and unlikely enough
])
def test_clipped_surrogate_by_hand(script, ratio, advantage, loss, slope):
    surrogate = importlib.import_module(script).clipped_surrogate
    log_prob = torch.tensor([np.log(ratio) - 1, -1], dtype=torch.float32, requires_grad=True)
    result = surrogate(log_prob, torch.tensor([-1.0, -1.0]), torch.tensor([advantage, 0.0]), 0.2)
    result.backward()
    assert result.shape == () and result.item() == pytest.approx(loss / 2, rel=1e-5)  # the mean of two
    assert log_prob.grad.tolist() == pytest.approx([slope / 2, 0], rel=1e-5)


@pytest.mark.parametrize("script, suffix", [("ppo", ""), ("ppo", "Box"), ("pofd", "Box")])
def test_gradient_is_the_policy_gradient_with_value_loss_and_entropy(script, suffix, monkeypatch):
    """In one minibatch, with lambda 1: -E[log pi(a|s) A] + E[(V(s) - R)^2] / 2 - c E[entropy], where R is the
    reward to go and A is R - V(s), normalised."""
    seen, gradients = {}, []
    module, config = tiny(
        script, env_id=f"probes:Ahead{suffix}-v0", num_steps=15, total_timesteps=60, update_epochs=1,
        num_minibatches=1, gae_lambda=1.0, gamma=0.9, ent_coef=0.1)
    spy(monkeypatch, module, "gae", lambda _, reward, value, *rest: seen.update(reward=reward, value=value))
    spy(monkeypatch, module, "make_batch", lambda batch, _, agent, *rest: seen.update(
        agent=copy.deepcopy(agent), obs=batch[-5], action=batch[-4]))
    spy(monkeypatch, torch.optim.Adam, "step", lambda _, optimizer, *__: gradients.append(
        torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"] if p.grad is not None])))
    module.main(config, report=lambda row: None)

    agent, to_go = seen["agent"], seen["reward"].clone()
    for t in reversed(range(14)):  # episodes of three steps, then a step that resets
        to_go[t] += 0.9 * to_go[t + 1] * (t % 4 < 2)
    real = torch.arange(15) % 4 != 3
    to_go, advantage = to_go[real].flatten(), (to_go - seen["value"])[real].flatten()
    policy, value = agent(seen["obs"])
    advantage = (advantage - advantage.mean()) / advantage.std()
    loss = -(policy.log_prob(seen["action"]) * advantage).mean()
    loss = loss + ((value - to_go) ** 2).mean() / 2 - 0.1 * policy.entropy().mean()
    expected = torch.autograd.grad(loss, list(agent.parameters()), allow_unused=True)
    expected = torch.cat([gradient.flatten() for gradient in expected if gradient is not None])
    ours = gradients[0] * expected.norm() / gradients[0].norm()  # a bound on its norm may have scaled it
    assert torch.allclose(ours, expected, atol=1e-4 * expected.norm())


@both
def test_ratio_is_one_on_the_first_minibatch_and_advantages_are_normalised(script, monkeypatch):
    calls, (module, config) = [], tiny(script)
    spy(monkeypatch, module, "clipped_surrogate", lambda _, *args: calls.append(args))
    train(script)
    steps = config.update_epochs * config.num_minibatches
    assert len(calls) == 256 // 64 * steps
    for i, (log_prob, old_log_prob, advantage, _) in enumerate(calls):
        assert advantage.mean().abs() < 1e-5 and advantage.std() == pytest.approx(1, abs=1e-3)
        assert torch.allclose(log_prob, old_log_prob, atol=1e-5) or i % steps > 0
    assert not torch.allclose(log_prob, old_log_prob, atol=1e-3)


@both
def test_value_targets_are_fixed_per_rollout(script, monkeypatch):
    targets = []
    spy(monkeypatch, torch.nn.functional, "mse_loss", lambda *args: targets.append(args[2].sort()[0]))
    train(script, num_minibatches=1, update_epochs=3)
    assert len(targets) == 4 * 3 and not any(target.requires_grad for target in targets)
    for first, second, third in zip(targets[::3], targets[1::3], targets[2::3]):
        assert torch.equal(first, second) and torch.equal(first, third)


@both
def test_raw_action_is_stored_and_the_executed_one_is_sent(script, monkeypatch):
    """In the bounds [10, 20] the policy's -1 is 10 and its 1 is 20."""
    sent, stored = [], []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda _, envs, action: sent.append(action))
    spy(monkeypatch, tiny(script)[0], "make_batch", lambda batch, *_: stored.append(batch[-4]))
    train(script, env_id="probes:FarBox-v0", total_timesteps=64)
    sent = np.stack(sent[:16])[np.arange(16) % 3 < 2].flatten()  # the third step only resets
    raw = stored[0].flatten().numpy()
    assert (np.abs(raw) > 1).any() and sent == pytest.approx(np.clip(15 + 5 * raw, 10, 20))


LEARN = dict(total_timesteps=1_280, num_envs=8, update_epochs=4, reward_scale=1.0, reward_lambda=0.0)


def learned_values(script, name, steps, **settings):
    """V (steps,) on a probe."""
    agent, _ = train(script, name, **LEARN, **settings)
    return agent(torch.tensor([[step, 1.0] for step in range(steps)]))[1].detach().numpy()


@both
def test_values_of_rewards_now_and_two_steps_ahead(script):
    assert learned_values(script, "Constant", 1, gamma=0.9) == pytest.approx([1.0], abs=0.1)
    assert learned_values(script, "Ahead", 3, gamma=0.5) == pytest.approx([0.25, 0.5, 1.0], abs=0.15)


@both
def test_values_at_a_termination_and_at_a_truncation(script):
    values = learned_values(script, "Terminated", 4, gamma=0.5)
    assert values == pytest.approx([1.875, 1.75, 1.5, 1.0], abs=0.15)
    assert learned_values(script, "Truncated", 4, gamma=0.5).min() > 1.3  # it bootstraps


@pytest.mark.parametrize("script, name, worst", [
    ("ppo", "ByAction", 1), ("ppo", "FarBox", -2), ("pofd", "FarBox", -2)])
def test_best_action_is_found_also_where_the_bounds_are_far_from_zero(script, name, worst):
    agent, _ = train(script, env_id=f"probes:{name}-v0", **LEARN)
    assert tiny(script)[0].evaluate(agent, f"probes:{name}-v0", 5, seed=0).mean() >= worst
