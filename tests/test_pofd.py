"""POfD: what its discriminator learns, sees and pays, and its demonstrations. See test_ppo.py."""
from pathlib import Path

import numpy as np
import pytest
import torch

import pofd
import probes
from tiny import demonstrations, network, spy, tiny, train


def test_discriminator_loss_by_hand():
    """Also where D is certain, with the logits -300 and 300."""
    agent = torch.tensor([0.3, -1.2, -300.0], requires_grad=True)
    demo = torch.tensor([-0.7, 300.0], requires_grad=True)
    loss = pofd.discriminator_loss(agent, demo)
    loss.backward()
    d_agent, d_demo = agent.detach().double().sigmoid(), demo.detach().double().sigmoid()
    by_hand = -d_agent.log().mean() + (300 - (1 - d_demo[0]).log()) / 2
    assert loss.item() == pytest.approx(by_hand.item())
    assert agent.grad.numpy() == pytest.approx((d_agent - 1).numpy() / 3)  # moves D to 1
    assert demo.grad.numpy() == pytest.approx(d_demo.numpy() / 2)  # moves D to 0


def test_imitation_reward_by_hand():
    reward = pofd.imitation_reward(torch.tensor([0.0, 2.0, -300.0], requires_grad=True))
    assert reward.tolist() == pytest.approx([np.log(2), np.log(1 + np.exp(-2)), 300])
    assert not reward.requires_grad


def test_reward_is_the_environments_and_lambda_times_the_discriminators():
    """Three steps of one environment; the second only resets. D sees the executed actions."""
    agent, (_, config) = network("pofd"), tiny("pofd", gae_lambda=0.0)
    agent.critic[-1].weight.data.zero_()
    agent.critic[-1].bias.data.zero_()
    rollout = [[np.array(array) for array in (
        [[t, 1.0]], [[2.0]], [[0.5 + t]], [10.0 * t], [[t + 1, 1.0]], [False], [False], [t == 1])]
        for t in range(3)]
    batch = pofd.make_batch(rollout, agent, lambda obs, action: action.sum(-1), 3.0, config)
    obs, action, executed, log_prob, advantage, target = batch
    assert obs.tolist() == [[0, 1], [2, 1]] and executed.tolist() == [[0.5], [2.5]]
    by_hand = [10 * t + 3 * np.log(1 + np.exp(-0.5 - t)) for t in (0, 2)]  # -log D = softplus(-x)
    assert advantage.tolist() == target.tolist() == pytest.approx(by_hand)
    assert torch.allclose(log_prob, agent.policy(obs).log_prob(action))


def test_discriminator_learns_from_executed_actions_and_demonstrations(monkeypatch):
    """Bounds are [10, 20], and the demonstrated actions are from 12 to 13."""
    seen, losses = {}, []
    path = demonstrations(actions=np.linspace(12, 13, 50)[:, None])
    spy(monkeypatch, pofd.Discriminator, "forward", lambda logits, _, obs, action: (
        seen.update({logits: (obs, action)})))
    spy(monkeypatch, pofd, "discriminator_loss", lambda _, *logits: losses.append(logits))
    train("pofd", env_id="probes:FarBox-v0", demo=path, total_timesteps=64)
    for agent_logits, demo_logits in losses:
        (obs, action), (demo_obs, demo_action) = seen[agent_logits], seen[demo_logits]
        assert set(obs[:, 0].tolist()) == {0, 1} and 10 <= action.min() < action.max() <= 20
        assert len(demo_obs.unique()) > 4 and 12 <= demo_action.min() < demo_action.max() <= 13


@pytest.mark.parametrize("rows, std", [(50, 2.0), (50, 0.0), (50, 1e-4), (1, 2.0)])
def test_discriminator_sees_pairs_on_the_demonstrations_scale_but_not_blown_up(
        rows, std, monkeypatch):
    obs, action, seen = 5 + std * torch.randn(rows, 2), 15 + 0.1 * torch.randn(rows, 1), []
    discriminator = pofd.Discriminator(obs, action, 16)
    spy(monkeypatch, torch.nn.Linear, "forward", lambda _, __, pairs: seen.append(pairs))
    assert discriminator(obs + 1, action).shape == (rows,)
    assert seen[0].abs().max() <= 20
    assert rows == 1 or std < 2 or seen[0].std(0).tolist() == pytest.approx([1] * 3, abs=0.1)


def test_reward_is_read_before_the_discriminator_learns_from_the_rollout(monkeypatch):
    calls, far = [], demonstrations(observations=np.full((50, 2), 10.0))
    spy(monkeypatch, pofd, "imitation_reward", lambda reward, _: calls.append("read"))
    spy(monkeypatch, pofd, "discriminator_loss", lambda *_: calls.append("learn"))
    train("pofd", demo=far, update_epochs=15, num_minibatches=2)
    assert calls == (["read"] + ["learn"] * 30) * 4


def test_demonstrations_are_pairs_in_the_environments_own_units():
    path = demonstrations(actions=np.linspace(5, 25, 50)[:, None])
    obs, action = pofd.load_demonstrations(path, probes.FLAT, probes.FAR)
    assert obs.shape == (50, 2) and obs.dtype == action.dtype == torch.float32
    assert (action.min(), action.max()) == (10, 20), "as executed, in the bounds"


def refused(path, monkeypatch):
    """The one sentence that refuses a file before anything is learned."""
    monkeypatch.setattr(pofd, "make_batch", lambda *_: pytest.fail("training started"))
    with pytest.raises(Exception) as error:
        train("pofd", demo=str(path))
    sentence, = str(error.value).splitlines()
    return sentence


@pytest.mark.parametrize("key, array", [
    ("observations", np.zeros((50, 3))), ("observations", np.zeros((50, 2, 1))),
    ("observations", np.zeros((0, 2))), ("observations", np.full((50, 2), np.nan)),
    ("observations", None), ("observations", np.zeros(())), ("actions", np.zeros(50)),
    ("actions", np.zeros((50, 2))), ("actions", np.zeros((49, 1))), ("actions", np.zeros((0, 1))),
    ("actions", np.full((50, 1), np.inf)), ("actions", None)])
def test_arrays_that_do_not_fit_are_refused_by_name(key, array, monkeypatch):
    assert key in refused(demonstrations(**{key: array}), monkeypatch)


@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\n\0\0", b"obs,action\n1,2\n", b"", None])
def test_hdf5_text_npy_and_broken_files_are_refused_by_name(content, tmp_path, monkeypatch):
    path = tmp_path / "demo.hdf5"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refused(path, monkeypatch)
    np.save(tmp_path / "demo.npy", np.zeros((50, 3)))
    assert "demo.npy" in refused(tmp_path / "demo.npy", monkeypatch)
    path.write_bytes(Path(demonstrations()).read_bytes()[:500])
    assert str(path) in refused(path, monkeypatch)


def test_demonstrations_are_looked_for_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = Path(pofd.__file__).parent / "demos" / "ByActionsBox-v0.npz"
    assert str(wanted) in refused("", monkeypatch)
