"""SAC: its losses and the density of its policy by hand, and values that are known."""

import pytest
import torch
from gymnasium.spaces import Box
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import sac
from tiny import spy, train

OBS = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))


def actor(low=-1, high=1):
    torch.manual_seed(1)
    return sac.Actor(Box(-1, 1, (3,)), Box(low, high, (2,)), 16, 0.1)


def test_log_probability_is_that_of_torchs_own_squashed_gaussian():
    policy = actor()
    policy[-1].weight.data *= 5
    torch.manual_seed(2)
    action, log_prob = policy.sample(OBS)
    mean, log_std = policy(OBS).chunk(2, -1)
    squashed = TransformedDistribution(Normal(mean, log_std.clamp(-5, 2).exp()), TanhTransform(cache_size=1))
    torch.manual_seed(2)
    expected = squashed.rsample()
    assert torch.allclose(action, expected, atol=1e-6) and log_prob.shape == (500,) and action.requires_grad
    assert torch.allclose(log_prob, squashed.log_prob(expected).sum(-1), atol=1e-4)


@pytest.mark.parametrize("far", [-30.0, 30.0])
def test_log_probability_is_finite_at_the_edge_and_beyond(far):
    policy = actor()
    policy[-1].bias.data[:2] = far
    action, log_prob = policy.sample(OBS)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all() and (action.abs() <= 1).all()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


def test_act_is_the_scaled_tanh_of_the_mean():
    policy = actor(low=-2, high=6)
    expected = 2 + 4 * policy(OBS)[:, :2].tanh().detach().numpy()
    assert policy.act(OBS.numpy()) == pytest.approx(expected, abs=1e-5)


def test_critics_are_two_networks():
    critics, action = sac.Critics(5, 16), torch.zeros(500, 2)
    before = critics(OBS, action)
    for parameter in critics[1].parameters():
        parameter.data.normal_()
    after = critics(OBS, action)
    assert before.shape == (2, 500) and not torch.allclose(before[0], before[1])
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])
    assert [type(layer).__name__ for layer in critics[0]] == "Linear ReLU Linear ReLU Linear".split()


class Known:
    """Two critics of known values, or an actor of a known log-probability."""
    def __init__(self, first=0.0, second=0.0, log_prob=0.0):
        self.values = torch.tensor([first, second], requires_grad=True)
        self.log_prob = torch.tensor([log_prob], requires_grad=True)

    def __call__(self, obs, action):
        return self.values[:, None].expand(2, len(obs))

    def sample(self, obs):
        return torch.zeros(len(obs), 1), self.log_prob.expand(len(obs))


@pytest.mark.parametrize("terminated, target", [(0.0, 1 + 0.9 * (4 - 0.5 * 3)), (1.0, 1.0)])
def test_critic_loss_by_hand(terminated, target):
    """Bootstraps from the smaller of the target critics, less alpha log pi."""
    critics, targets, policy = Known(2.0, 5.0), Known(7.0, 4.0), Known(log_prob=3.0)
    batch = sac.Batch(OBS, OBS, torch.ones(500), OBS, torch.full((500,), terminated))
    loss = sac.critic_loss(critics, targets, policy, batch, 0.5, 0.9)
    loss.backward()
    assert loss.item() == pytest.approx((2 - target) ** 2 + (5 - target) ** 2)
    assert critics.values.grad.tolist() == pytest.approx([2 * (2 - target), 2 * (5 - target)])
    assert targets.values.grad is None and policy.log_prob.grad is None


def test_actor_loss_by_hand():
    critics, log_prob = Known(7.0, 4.0), torch.tensor([3.0], requires_grad=True)
    loss = sac.actor_loss(critics, OBS, OBS, log_prob, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 3 - 4)
    assert log_prob.grad.item() == pytest.approx(0.5) and critics.values.grad.tolist() == [0, -1]


@pytest.mark.parametrize("entropy, falls", [(3.0, True), (-4.0, False)])
def test_temperature_falls_while_entropy_is_above_its_target(entropy, falls):
    log_alpha, log_prob = (torch.tensor(x, requires_grad=True) for x in (0.5, [-entropy] * 8))
    sac.temperature_loss(log_alpha, log_prob, -1.0).backward()
    assert log_alpha.grad.item() == pytest.approx(entropy + 1.0) and (log_alpha.grad > 0) == falls
    assert log_prob.grad is None


def test_each_network_steps_down_the_gradient_of_its_own_loss(monkeypatch):
    """Also the temperature. It starts at 0.2, and its target is minus the number of actions."""
    expected, compared, targets, actors, alphas = {}, [], set(), [], []

    def see(parameters, loss):
        layers = [p for p in parameters if p.dim() > 0] or parameters  # without the temperature
        expected.update(zip(map(id, layers), torch.autograd.grad(loss, layers, retain_graph=True)))

    spy(monkeypatch, sac.Actor, "__init__", lambda _, actor, *args: (
        actors.append(actor), alphas.append(actor.log_alpha.exp().item())))
    spy(monkeypatch, sac, "actor_loss", lambda loss, *_: see(actors[0].parameters(), loss))
    spy(monkeypatch, sac, "critic_loss", lambda loss, critics, *_: see(critics.parameters(), loss))
    spy(monkeypatch, sac, "temperature_loss", lambda loss, log_alpha, _, target: (
        see([log_alpha], loss), targets.add(float(target))))
    spy(monkeypatch, torch.optim.Adam, "step", lambda _, optimizer, *__: compared.extend(
        torch.allclose(p.grad, expected[id(p)], rtol=1e-3, atol=1e-6)
        for group in optimizer.param_groups for p in group["params"]))
    train("sac", env_id="probes:TwoBox-v0", total_timesteps=80)
    assert len(compared) > 300 and all(compared) and targets == {-2.0} and alphas == pytest.approx([0.2])


LEARN = dict(total_timesteps=1_200, learning_rate=1e-2, batch_size=64, hidden_size=32)


def learned_values(monkeypatch, name, steps, **settings):
    """Q (steps,), the mean of both critics, on a probe at the action 0. Entropy hardly counts."""
    critics, build = [], sac.Actor.__init__
    monkeypatch.setattr(sac.Actor, "__init__", lambda self, *args, alpha: build(self, *args, alpha=1e-5))
    spy(monkeypatch, sac, "critic_loss", lambda _, *networks: critics.append(networks[0]))
    train("sac", name, **LEARN, **settings)
    obs = torch.tensor([[step, 1.0] for step in range(steps)])
    return critics[-1](obs, torch.zeros(steps, 1)).mean(0).detach().numpy()


def test_values_of_rewards_now_and_two_steps_ahead(monkeypatch):
    assert learned_values(monkeypatch, "Constant", 1) == pytest.approx([1.0], abs=0.1)
    assert learned_values(monkeypatch, "Ahead", 3, gamma=0.5) == pytest.approx([0.25, 0.5, 1.0], abs=0.1)


def test_values_at_a_termination_and_at_a_truncation(monkeypatch):
    values = learned_values(monkeypatch, "Terminated", 4, gamma=0.5)
    assert values == pytest.approx([1.875, 1.75, 1.5, 1.0], abs=0.2)
    assert learned_values(monkeypatch, "Truncated", 4, gamma=0.5).min() > 1.3  # it bootstraps


def test_best_action_is_found_also_where_the_bounds_are_far_from_zero(monkeypatch):
    stored = []
    spy(monkeypatch, sac.ReplayBuffer, "add", lambda _, buffer, obs, action, *rest: stored.append(action))
    agent, _ = train("sac", env_id="probes:FarBox-v0", **LEARN)
    assert sac.evaluate(agent, "probes:FarBox-v0", 5, seed=0).mean() >= -2
    assert all((abs(action) <= 1).all() for action in stored)  # raw actions, not executed ones
