"""POfD: what the discriminator learns, sees and pays, and its demonstrations. PPO's parts: test_ppo.py."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import pofd
from tiny import TOP, demonstrations, spy, train, weights


def test_discriminator_loss_by_hand():
    """Also where D is certain: the logits -300 and 300."""
    agent, demo = (torch.tensor(x, requires_grad=True) for x in ([0.3, -1.2, -300.0], [-0.7, 300.0]))
    loss = pofd.discriminator_loss(agent, demo)
    loss.backward()
    d_agent, d_demo = (1 / (1 + np.exp(-x.detach().numpy().astype(float))) for x in (agent, demo))
    by_hand = -np.log(d_agent).mean() + (300 - np.log(1 - d_demo[0])) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert agent.grad.numpy() == pytest.approx(-(1 - d_agent) / 3, rel=1e-5)  # descent moves D to 1 here
    assert demo.grad.numpy() == pytest.approx(d_demo / 2, rel=1e-5)  # and to 0 here


def test_imitation_reward_by_hand():
    reward = pofd.imitation_reward(torch.tensor([0.0, 2.0, -300.0], requires_grad=True))
    assert reward.tolist() == pytest.approx([np.log(2), np.log(1 + np.exp(-2)), 300])
    assert not reward.requires_grad


def test_reward_is_the_environments_and_lambda_times_the_discriminators(monkeypatch):
    """And what is reported is the environment's alone."""
    bonus, learned = [], []
    spy(monkeypatch, pofd, "imitation_reward", lambda reward, _: bonus.append(reward))
    spy(monkeypatch, pofd, "gae", lambda _, reward, *rest: learned.append(reward))
    _, rows = train("pofd", "Truncated", reward_scale=0.5, reward_lambda=2.0, num_steps=15)
    real = torch.arange(15) % 5 != 4  # four steps that pay 1, then a step that resets
    assert len(learned) == len(bonus) == 5
    for reward, paid in zip(learned, bonus):
        assert torch.allclose(reward[real], 0.5 + 2 * paid[real]) and paid.std() > 0.01
    assert all(row.split()[3] == "4.0" for row in rows)


@pytest.mark.parametrize("reward_lambda", [0.0, 0.1])
def test_without_its_reward_the_demonstrated_actions_do_not_matter(reward_lambda):
    outcomes = set()
    for bound in (0.5, 1):
        path = demonstrations(actions=np.linspace(-bound, bound, 50)[:, None])
        outcomes.add(weights(train("pofd", reward_lambda=reward_lambda, demo=path)[0]))
    assert len(outcomes) == (2 if reward_lambda else 1)


def test_discriminator_sees_executed_actions_on_the_demonstrations_scale(monkeypatch):
    """The agent sees its observations on that scale, too. D is the only network of 3 inputs here."""
    sent, calls, seen, losses, path = [], [], [], [], demonstrations(actions=np.linspace(5, 25, 50)[:, None])
    spy(monkeypatch, torch.nn.Sequential, "forward", lambda output, network, inputs: (
        (calls if network[0].in_features == 3 else seen).append((inputs, output))))
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda _, envs, action: sent.append(action))
    spy(monkeypatch, pofd, "discriminator_loss", lambda _, *logits: losses.append(logits))
    settings = dict(total_timesteps=64, update_epochs=1, num_minibatches=1)
    train("pofd", env_id="probes:FarBox-v0", demo=path, **settings)
    (rollout, _), (of_agent, agent_logits), (of_demo, demo_logits) = calls
    with np.load(path) as file:
        demo = np.hstack([file["observations"], np.clip(file["actions"], 10, 20)])
    mean, std, t = demo.mean(0), demo.std(0), np.arange(16)  # two steps an episode, then a step that resets
    obs = np.broadcast_to(np.stack([t % 3, np.ones(16)], 1)[:, None], (16, 4, 2))
    pairs = (np.concatenate([obs, np.array(sent[:16])], -1) - mean) / std
    assert rollout.numpy() == pytest.approx(pairs, abs=1e-4)
    assert seen[0][0].numpy() == pytest.approx(pairs[0, :, :2], abs=1e-4)
    assert np.isin([10, 20], np.array(sent[:16])).all(), "some are executed at the bounds"
    for some, rows in (of_agent, pairs[t % 3 < 2].reshape(-1, 3)), (of_demo, (demo - mean) / std):
        assert np.abs(some.numpy()[:, None] - rows).max(-1).min(-1).max() < 1e-4, "not all are of these rows"
    assert losses[0][0] is agent_logits and losses[0][1] is demo_logits


def test_reward_is_read_before_the_discriminator_learns_to_tell_the_agent_from_demonstrations(monkeypatch):
    calls, far = [], demonstrations(observations=np.random.default_rng(0).normal(size=(50, 2)) + 10)
    spy(monkeypatch, pofd, "imitation_reward", lambda reward, _: calls.append(reward.mean().item()))
    spy(monkeypatch, pofd, "discriminator_loss", lambda *_: calls.append("learn"))
    train("pofd", demo=far, update_epochs=15, num_minibatches=2, discriminator_learning_rate=1e-2)
    assert [call == "learn" for call in calls] == [False] + [True] * 30 + ([False] + [True] * 30) * 3
    assert calls[0] == pytest.approx(np.log(2), abs=0.3) and calls[93] < 0.1


def refused(path, monkeypatch):
    """The last line of the traceback, before anything is learned."""
    monkeypatch.setattr(pofd, "make_batch", lambda *_: pytest.fail("training started"))
    with pytest.raises(Exception) as error:
        train("pofd", demo=str(path))
    return str(error.value)


@pytest.mark.parametrize("key, shape, expected", [
    ("observations", (50, 3), "(50, 2)"), ("observations", (50, 2, 1), "(50, 2)"),
    ("actions", (50,), "(50, 1)"), ("actions", (50, 2), "(50, 1)"), ("actions", (49, 1), "(50, 1)")])
def test_demonstrations_of_another_shape_are_refused(key, shape, expected, monkeypatch):
    path = demonstrations(**{key: np.zeros(shape)})
    message = refused(path, monkeypatch)
    assert path in message and f"{shape}, expected {expected}" in message


def test_broken_files_of_demonstrations_are_refused(tmp_path, monkeypatch):
    data = Path(demonstrations()).read_bytes()
    assert refused(tmp_path / "missing", monkeypatch)
    for content in (data[: len(data) // 2], b"", b"hello"):
        (tmp_path / "broken").write_bytes(content)
        assert refused(tmp_path / "broken", monkeypatch)
    for key in ("observations", "actions"):
        assert key in refused(demonstrations(**{key: None}), monkeypatch)
    assert "pickle" in refused(demonstrations(observations=np.full((50, 2), object())), monkeypatch)


def test_demonstrations_are_found_beside_the_script(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pofd, "evaluate", lambda *_: np.zeros(1))
    spy(monkeypatch, np, "load", lambda _, path: loaded.append(path))
    train("pofd", env_id="gymnasium:MountainCarContinuous-v0", demo="", total_timesteps=64)
    assert os.path.samefile(*loaded, TOP / "demos" / "MountainCarContinuous-v0.npz")


@pytest.mark.parametrize("name, low, high", [
    ("InvertedPendulumPyBulletSparseEnv-v0", 50, 150), ("MountainCarContinuous-v0", 90, 95),
    ("InvertedDoublePendulumPyBulletSparseEnv-v0", 250, 400)])
def test_shipped_demonstrations_are_five_imperfect_episodes(name, low, high):
    with np.load(TOP / "demos" / f"{name}.npz") as file:
        assert sorted(file) == ["actions", "observations", "rewards", "terminals", "timeouts"]
        ends = file["terminals"] | file["timeouts"]
        assert {len(file[key]) for key in file} == {len(ends)} and ends.sum() == 5 and ends[-1]
        assert low <= file["rewards"].sum() / 5 <= high
