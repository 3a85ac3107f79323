"""SAC: its losses by hand, and the density of its policy."""
import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import probes
import sac
from tiny import network, spy, train

OBS = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("far", [0.0, 30.0, -30.0])
def test_log_probability_is_that_of_torchs_own_squashed_gaussian(far):
    """Also where tanh is 1 or -1 in float32."""
    actor = network("sac", probes.TWO)
    actor[-1].bias.data[:2] = far
    mean, log_std = actor(OBS).chunk(2, -1)
    gaussian = Normal(mean, log_std.clamp(-5, 2).exp())
    squashed = TransformedDistribution(gaussian, TanhTransform(cache_size=1))
    torch.manual_seed(2)
    action, log_prob = actor.sample(OBS)
    torch.manual_seed(2)
    expected = squashed.rsample()
    assert torch.allclose(action, expected, atol=1e-6) and action.requires_grad
    assert torch.allclose(log_prob, squashed.log_prob(expected).sum(-1), atol=1e-4)
    greedy = torch.tensor([0, 15]) + torch.tensor([1, 5]) * mean.tanh()  # between the bounds
    assert actor.act(OBS.numpy()) == pytest.approx(greedy.detach().numpy(), abs=1e-4)


class Known:
    """Two critics of known values, or an actor of a known log-probability."""
    def __init__(self, *values):
        self.values = torch.tensor(values, requires_grad=True)

    def __call__(self, obs, action):
        return self.values[:, None].expand(2, len(obs))

    def sample(self, obs):
        return torch.zeros(len(obs), 1), self.values.expand(len(obs))


@pytest.mark.parametrize("terminated, target", [(0.0, 1 + 0.9 * (4 - 0.5 * 3)), (1.0, 1.0)])
def test_critic_loss_by_hand(terminated, target):
    """Bootstraps from the smaller of the target critics, less alpha log pi."""
    critics, targets, actor = Known(2.0, 5.0), Known(7.0, 4.0), Known(3.0)
    batch = sac.Batch(OBS, OBS, torch.ones(500), OBS, torch.full((500,), terminated))
    loss = sac.critic_loss(critics, targets, actor, batch, 0.5, 0.9)
    loss.backward()
    assert loss.item() == pytest.approx((2 - target) ** 2 + (5 - target) ** 2)
    assert critics.values.grad.tolist() == pytest.approx([2 * (2 - target), 2 * (5 - target)])
    assert targets.values.grad is None and actor.values.grad is None


def test_actor_loss_by_hand():
    critics, log_prob = Known(7.0, 4.0), torch.tensor([3.0], requires_grad=True)
    loss = sac.actor_loss(critics, OBS, OBS, log_prob, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 3 - 4)
    assert log_prob.grad.item() == pytest.approx(0.5) and critics.values.grad.tolist() == [0, -1]


def test_temperature_loss_by_hand():
    """-alpha E[log pi + target] with alpha = exp(log alpha). Its slope is the same."""
    log_alpha = torch.tensor(0.5, requires_grad=True)
    log_prob = torch.tensor([-2.0, -4.0], requires_grad=True)
    loss = sac.temperature_loss(log_alpha, log_prob, -1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-np.exp(0.5) * (-3 - 1))
    assert log_alpha.grad.item() == pytest.approx(loss.item()) and log_prob.grad is None


def test_alpha_is_used_and_its_target_is_minus_the_number_of_actions(monkeypatch):
    used, known, targets = [], [], set()
    spy(monkeypatch, sac, "actor_loss", lambda *args: used.append(float(args[-1])))
    spy(monkeypatch, sac, "temperature_loss", lambda _, log_alpha, __, target: (
        known.append(log_alpha.exp().item()), targets.add(target)))
    train("sac", env_id="probes:TwoBox-v0")
    assert used == pytest.approx(known) and used[0] != used[-1] and targets == {-2}
