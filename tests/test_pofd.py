"""POfD: what its discriminator learns, sees and pays, and its demonstrations. See test_ppo.py."""
import re
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


def test_imitation_reward_is_minus_log_d():
    reward = pofd.imitation_reward(torch.tensor([0.0, 2.0, -300.0], requires_grad=True))
    assert reward.tolist() == pytest.approx([np.log(2), np.log(1 + np.exp(-2)), 300])
    assert not reward.requires_grad


def test_reward_is_the_environments_and_lambda_times_the_discriminators():
    """Of three steps the second only resets. All terminate, so that the target is the reward.
    The bounds are [10, 20], and the raw actions -0.5 and 2 are executed as 12.5 and 20."""
    agent, config = network("pofd", probes.FAR), tiny("pofd", reward_lambda=3.0)[1]
    columns = [([[t, 1]], [[raw]], [10 * t], [[t + 1, 1]], [True], [True], [t == 1])
               for t, raw in enumerate([-0.5, 0, 2])]
    rollout = [[torch.tensor(x, dtype=torch.float32) for x in column] for column in columns]
    batch = pofd.make_batch(rollout, agent, lambda pair: pair[..., 2] - 15, config)
    _, _, pair, _, _, target = batch
    assert pair.tolist() == [[0, 1, 12.5], [2, 1, 20]]
    by_hand = [3 * np.log(1 + np.exp(2.5)), 20 + 3 * np.log(1 + np.exp(-5))]  # -log sigmoid(x)
    assert target.tolist() == pytest.approx(by_hand)


def test_discriminator_learns_from_executed_actions_and_demonstrations(monkeypatch):
    """The bounds are [10, 20], and the demonstrated actions are from 5 to 12."""
    seen, losses = {}, []
    spy(monkeypatch, pofd.Discriminator, "forward", lambda *call: seen.update({call[0]: call[2]}))
    spy(monkeypatch, pofd, "discriminator_loss", lambda _, *logits: losses.append(logits))
    path = demonstrations(actions=np.linspace(5, 12, 50)[:, None])
    train("pofd", env_id="probes:FarBox-v0", demo=path)
    agent_pairs, demo_pairs = (torch.cat([seen[x] for x in logits]) for logits in zip(*losses))
    assert {*agent_pairs[:, 0].tolist()} == {0, 1}, "observations of the probe"
    assert agent_pairs[:, 2].aminmax() == (10, 20)
    assert demo_pairs[:, 2].aminmax() == (10, 12)


@pytest.mark.parametrize("rows, std", [(50, 2.0), (50, 0.0), (50, 1e-4), (1, 2.0)])
def test_discriminator_sees_pairs_on_the_demonstrations_scale_but_not_blown_up(
        rows, std, monkeypatch):
    demo, seen = 5 + std * torch.randn(rows, 3), []
    discriminator = pofd.Discriminator(demo, 16)
    spy(monkeypatch, torch.nn.Linear, "forward", lambda _, __, pair: seen.append(pair))
    assert discriminator(demo).shape == discriminator(demo + 1_000).shape == (rows,)
    near, _, far, _ = seen  # each goes through two layers
    assert far.abs().max() <= 20 and near.mean(0).tolist() == pytest.approx([0] * 3, abs=0.01)
    assert rows == 1 or std < 2 or near.std(0).tolist() == pytest.approx([1] * 3, abs=0.05)


def test_reward_is_read_before_the_discriminator_learns_to_tell_both_apart(monkeypatch):
    calls, far = [], demonstrations(observations=np.full((50, 2), 10.0))
    spy(monkeypatch, pofd, "imitation_reward", lambda reward, _: calls.append("read"))
    spy(monkeypatch, pofd, "discriminator_loss", lambda *_: calls.append("learn"))
    _, rows = train("pofd", demo=far, discriminator_learning_rate=0.02)
    assert calls == (["read"] + ["learn"] * 6) * 4
    assert rows[-1]["discriminator_loss"] < 0.7 < 2 * np.log(2), "less than by guessing"


MISFITS = {
    "observations": [np.zeros((50, 3)), np.zeros((0, 2)), np.full((50, 2), np.nan), None],
    "actions": [np.zeros(50), np.zeros((50, 2)), np.full((50, 1), np.inf), np.zeros((49, 1))]}


@pytest.mark.parametrize("key, array", [(key, x) for key in MISFITS for x in MISFITS[key]])
def test_demonstrations_that_do_not_fit_are_refused_by_name(key, array, monkeypatch):
    monkeypatch.setattr(pofd, "make_batch", lambda *_: pytest.fail("training started"))
    with pytest.raises(Exception, match=f"{key}|size 49") as error:
        train("pofd", demo=demonstrations(**{key: array}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["demo.hdf5", "demo.npy", "demo.csv", "missing.npz"])
def test_other_files_are_refused_by_name(name, tmp_path):
    (tmp_path / name.replace("missing", "other")).write_bytes(b"\x89HDF\r\n\x1a\n\0\0")
    with pytest.raises(Exception, match=name):
        train("pofd", demo=str(tmp_path / name))


def test_demonstrations_are_looked_for_beside_the_script():
    wanted = Path(pofd.__file__).with_name("demos") / "ByActionsBox-v0.npz"
    with pytest.raises(FileNotFoundError, match=re.escape(str(wanted))):
        train("pofd", demo=pofd.Config.demo)
