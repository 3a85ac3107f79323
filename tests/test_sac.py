"""SAC: log-probabilities, targets and gradients by hand, the temperature, Polyak averaging, and warm-up."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

import sac

TINY = dict(num_envs=4, hidden_size=16, batch_size=32, learning_starts=100, total_timesteps=600)
WIDE = "probes:WideBox-v0"  # actions in [-2, 6]


def quiet(row):
    """Report to nobody."""


def networks(**settings):
    config = sac.Config(WIDE, **{**TINY, **settings})
    actor = sac.Actor(config).double()
    critic = sac.Critic(actor, config).double()
    return actor, critic, copy.deepcopy(critic).requires_grad_(False)


def batch(terminated=0.0, size=8):
    rng = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, size, 2, generator=rng).double()
    action = -2 + 8 * torch.rand(size, 1, generator=rng).double()
    return sac.Batch(
        obs, action, torch.randn(size, generator=rng).double(), next_obs, torch.full((size,), terminated)
    )


def test_log_probability_against_torch():
    actor, _, _ = networks()
    obs = torch.randn(500, 2).double()
    action, log_prob = actor.sample(obs)
    mean, log_std = actor(obs)
    squashed = [TanhTransform(cache_size=1), AffineTransform(2.0, 4.0)]
    expected = TransformedDistribution(Normal(mean, log_std.exp()), squashed).log_prob(action).sum(-1)
    assert action.shape == (500, 1) and log_prob.shape == (500,)
    assert action.min() >= -2 and action.max() <= 6
    assert torch.allclose(log_prob, expected, atol=1e-6)


def test_log_probability_is_finite_far_out():
    actor = sac.Actor(sac.Config(WIDE, **TINY))
    for far in (-20.0, 20.0):
        actor.layers[-1].bias.data[0] = far
        action, log_prob = actor.sample(torch.zeros(64, 2))
        assert torch.isfinite(log_prob).all() and torch.isfinite(action).all()
        log_prob.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in actor.parameters())


def test_act_is_the_scaled_tanh_of_the_mean():
    actor = sac.Actor(sac.Config(WIDE, **TINY))
    obs = np.random.default_rng(0).normal(size=(9, 2))
    with torch.no_grad():
        expected = 2 + 4 * torch.tanh(actor(torch.tensor(obs, dtype=torch.float32))[0]).numpy()
    action = actor.act(obs)
    assert action.dtype == np.float32 and action == pytest.approx(expected, abs=1e-6)
    assert (action == actor.act(obs)).all()


def test_two_critics_are_two_networks():
    actor, critic, _ = networks()
    obs, action, *_ = batch()
    q = critic(obs, action)
    assert q.shape == (2, 8) and not torch.allclose(q[0], q[1])
    before = q.detach().clone()
    critic.weights[0].data[1].normal_()
    after = critic(obs, action)
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])


def test_actor_has_two_hidden_layers():
    layers = sac.Actor(sac.Config(WIDE, **TINY)).layers
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU"] * 2 + ["Linear"]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(16, 2), (16, 16), (2, 16)]


def test_critics_begin_like_linear_layers():
    """Weights and biases uniform between plus and minus 1 / sqrt(inputs), and no two networks alike."""
    config = sac.Config(WIDE, **{**TINY, "hidden_size": 400})
    critic = sac.Critic(sac.Actor(config), config)
    for weights, biases, inputs in zip(critic.weights, critic.biases, (3, 400, 400)):
        for first, second in (weights, biases):
            assert not torch.equal(first, second)
        for values in (weights, biases):
            share = values.detach() * inputs**0.5
            assert share.abs().max() <= 1 + 1e-6
            if values.numel() > 100:
                assert share.min() < -0.95 and share.max() > 0.95 and share.mean().abs() < 0.1
                assert share.std().item() == pytest.approx(3**-0.5, rel=0.1)


def test_replay_buffer_keeps_the_latest():
    buffer, count = sac.ReplayBuffer(5, 2, 1), np.arange(8.0)
    for n in (count[:3], count[3:6], count[6:]):
        buffer.add(np.stack([n, -n], 1), n[:, None] / 8, 10 * n, np.stack([n + 1, n], 1), n % 2 == 0)
    drawn = buffer.sample(1_000, np.random.default_rng(0))
    n = drawn.obs[:, 0]
    kept, counts = torch.unique(n, return_counts=True)
    assert kept.tolist() == [3, 4, 5, 6, 7] and counts.min() > 150
    assert (drawn.obs[:, 1] == -n).all() and (drawn.action == n[:, None] / 8).all()
    assert (drawn.reward == 10 * n).all() and (drawn.terminated == (n % 2 == 0)).all()
    assert (drawn.next_obs == torch.stack([n + 1, n], 1)).all()
    assert [column.dtype for column in drawn] == [torch.float32] * 4 + [torch.bool]


@pytest.mark.parametrize("terminated", [0.0, 1.0])
def test_critic_loss_by_hand(terminated):
    actor, critic, target = networks()
    data, alpha, gamma = batch(terminated), torch.tensor(0.3).double(), 0.9
    torch.manual_seed(5)
    loss = sac.critic_loss(critic, target, actor, data, alpha, gamma)
    torch.manual_seed(5)
    next_action, next_log_prob = actor.sample(data.next_obs)
    both = target(data.next_obs, next_action)
    smaller = torch.where(both[0] < both[1], both[0], both[1])
    y = data.reward + (0.0 if terminated else gamma) * (smaller - alpha * next_log_prob)
    expected = sum(((q - y) ** 2).mean() for q in critic(data.obs, data.action))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is None for p in [*actor.parameters(), *target.parameters()])
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters())


def test_actor_loss_by_hand():
    actor, critic, _ = networks()
    obs, alpha = batch().obs, 0.3
    action, log_prob = actor.sample(obs)
    loss = sac.actor_loss(critic.requires_grad_(False), obs, action, log_prob, alpha)
    both = critic(obs, action)
    expected = (alpha * log_prob - torch.minimum(both[0], both[1])).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None for p in actor.parameters())


@pytest.mark.parametrize("entropy, falls", [(3.0, True), (-4.0, False)])
def test_temperature_falls_when_entropy_is_above_its_target(entropy, falls):
    log_alpha = torch.tensor(0.5, requires_grad=True)
    log_prob = torch.full((8,), -entropy, requires_grad=True)
    loss = sac.temperature_loss(log_alpha, log_prob, -1.0)
    loss.backward()
    assert (log_alpha.grad > 0) == falls  # gradient descent
    assert log_alpha.grad.item() == pytest.approx(entropy + 1.0)
    assert log_prob.grad is None


@pytest.mark.parametrize("target_entropy, falls", [(-50.0, True), (50.0, False)])
def test_a_step_of_the_actor_moves_the_temperature_too(target_entropy, falls):
    actor, critic, _ = networks()
    log_alpha = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([*actor.parameters(), log_alpha], 1e-2)
    before = [p.clone() for p in (*actor.parameters(), *critic.parameters())]
    sac.update_actor(actor, critic, log_alpha, optimizer, batch(0.0).obs, target_entropy)
    assert log_alpha.item() == pytest.approx(-0.01 if falls else 0.01, rel=1e-3)
    changed = [not torch.equal(p, old) for p, old in zip((*actor.parameters(), *critic.parameters()), before)]
    assert changed == [True] * len(list(actor.parameters())) + [False] * len(list(critic.parameters()))


def test_polyak_after_every_update(monkeypatch):
    seen, critic_loss = [], sac.critic_loss

    def spy(critic, target, *rest):
        assert all(not p.requires_grad for p in target.parameters())
        seen.append([copy.deepcopy(network.state_dict()) for network in (critic, target)])
        return critic_loss(critic, target, *rest)

    monkeypatch.setattr(sac, "critic_loss", spy)
    sac.train(sac.Config(WIDE, **{**TINY, "total_timesteps": 160}, tau=0.25), report=quiet)
    assert len(seen) == 60 // sac.Config().train_frequency
    for (_, before), (online, target) in zip(seen, seen[1:]):
        for name in target:
            assert torch.equal(target[name], torch.lerp(before[name], online[name], 0.25)), name


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_the_agent_returned_is_an_average_of_actors(share, monkeypatch):
    config = sac.Config(WIDE, **{**TINY, "total_timesteps": 180, "train_frequency": 4}, averaging=share)
    names = [name for name, _ in sac.Actor(config).named_parameters()]
    actors, step = [], torch.optim.Adam.step

    def spy(self, *args):
        step(self, *args)
        *weights, last = self.param_groups[0]["params"]
        if last.dim() == 0:  # the temperature, which is the actor's last
            actors.append({name: weight.detach().clone() for name, weight in zip(names, weights)})

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    agent = sac.train(config, report=quiet)
    assert len(actors) == 10  # 80 steps after the warm-up, 20 of the critics, one for each second of these
    mean = actors[0]
    for n, actor in enumerate(actors, 1):
        weight = 1 / max(1, share * n)
        mean = {name: (1 - weight) * mean[name] + weight * actor[name] for name in mean}
    for name, value in agent.named_parameters():
        assert torch.allclose(value, mean[name], atol=1e-6), name
        if share == 0:
            assert torch.equal(value, actors[-1][name])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_is_correlated_in_time(correlation, monkeypatch):
    noises, act = [], sac.Actor.act
    monkeypatch.setattr(
        sac.Actor, "act", lambda self, obs, noise: noises.append(noise) or act(self, obs, noise)
    )
    config = sac.Config(WIDE, num_envs=50, total_timesteps=20_000, learning_starts=20_000, hidden_size=8)
    sac.train(dataclasses.replace(config, noise_correlation=correlation), report=quiet)
    noise = torch.stack(noises)  # (400, 50, 1)
    assert noise.shape == (400, 50, 1)
    assert noise.mean().item() == pytest.approx(0, abs=0.1) and noise.std().item() == pytest.approx(
        1, abs=0.05
    )
    assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize(
    "probe, limit, length",
    [("Limited", 0, 5), ("Limited", 3, 3), ("Limited", 200, 5), ("Endless", 3, 3), ("Endless", 0, 10_000)],
)
def test_training_episodes_are_truncated_by_the_shorter_limit(probe, limit, length):
    rows, settings = [], {**TINY, "num_envs": 4, "total_timesteps": 128}
    sac.train(sac.Config(f"probes:{probe}Box-v0", **settings, max_episode_steps=limit), report=rows.append)
    assert rows[-1]["episodes"] == 4 * ((rows[-1]["step"] // 4 + 1) // (length + 1))  # one step is a reset


def test_training_episodes_are_truncated(monkeypatch):
    buffers, init = [], sac.ReplayBuffer.__init__
    monkeypatch.setattr(sac.ReplayBuffer, "__init__", lambda self, *a: buffers.append(self) or init(self, *a))
    config = sac.Config(WIDE, num_envs=2, total_timesteps=160, learning_starts=1_000, max_episode_steps=3)
    sac.train(config, report=quiet)
    next_obs, terminated = (buffers[0].arrays[i][: buffers[0].added] for i in (3, 4))
    assert buffers[0].added == 160 * 3 // 4 and next_obs[:, 0].max() == 3 and not terminated.any()


def test_warm_up_is_uniform_and_what_is_stored(monkeypatch):
    buffers, init = [], sac.ReplayBuffer.__init__

    def spy(self, *args):
        buffers.append(self)
        init(self, *args)

    monkeypatch.setattr(sac.ReplayBuffer, "__init__", spy)
    config = sac.Config(WIDE, num_envs=8, total_timesteps=4_800, learning_starts=10_000, hidden_size=8)
    sac.train(config, report=quiet)
    obs, action, _, next_obs, terminated = (array[: buffers[0].added] for array in buffers[0].arrays)
    assert buffers[0].added == 4_800 * 5 // 6  # 5 steps an episode, then a reset
    assert (next_obs[:, 0] == obs[:, 0] + 1).all() and (terminated == (next_obs[:, 0] == 5)).all()
    counts, _ = np.histogram(action, bins=8, range=(-2, 6))
    assert counts.sum() == len(action) and counts.min() > 0.85 * len(action) / 8


def test_truncation_is_not_termination(monkeypatch):
    buffers, init = [], sac.ReplayBuffer.__init__
    monkeypatch.setattr(sac.ReplayBuffer, "__init__", lambda self, *a: buffers.append(self) or init(self, *a))
    sac.train(
        sac.Config("probes:AlternatingBox-v0", num_envs=2, total_timesteps=160, learning_starts=1_000), quiet
    )
    obs, _, _, next_obs, terminated = (array[: buffers[0].added] for array in buffers[0].arrays)
    assert (terminated == ((next_obs[:, 0] == 3) & (obs[:, 1] % 2 == 0))).all() and terminated.sum() == 20


def test_probe_reward_by_action():
    settings = {**TINY, "total_timesteps": 2_500, "reward_scale": 1.0, "learning_rate": 1e-2}
    agent = sac.train(sac.Config("probes:ByActionBox-v0", **settings), report=quiet)
    assert sac.evaluate(agent, "probes:ByActionBox-v0", 5, seed=0) == pytest.approx(np.zeros(5), abs=0.02)


@pytest.mark.parametrize("plain", [False, True])
def test_critic_written_out(plain):
    _, critic, _ = networks(plain=plain)
    obs, action, *_ = batch()
    for i, q in enumerate(critic(obs, action)):
        x = torch.cat([obs, (action - 2) / 4], 1)  # actions in [-2, 6] become [-1, 1]
        for weight, bias in list(zip(critic.weights, critic.biases))[:-1]:
            x = x @ weight[i] + bias[i]
            x = torch.relu(x if plain else torch.nn.functional.layer_norm(x, (16,)))
        assert torch.allclose(q, (x @ critic.weights[-1][i]).squeeze(1) + critic.biases[-1][i])


def test_log_std_stays_between_its_bounds():
    actor = sac.Actor(sac.Config(WIDE, **TINY))
    for far, bound in (100.0, 2.0), (-100.0, -5.0):
        actor.layers[-1].bias.data[1] = far
        assert (actor(torch.zeros(3, 2))[1] == bound).all()


def test_temperature_starts_at_alpha_and_is_learned_and_used(monkeypatch):
    critics, actors, targets = [], [], set()
    spies = {
        "critic_loss": lambda *a: critics.append(a[4].item()),
        "actor_loss": lambda *a: actors.append(a[4]),
    }
    spies["temperature_loss"] = lambda *a: targets.add(round(float(a[2]), 5))
    for name, spy in spies.items():
        loss = getattr(sac, name)
        monkeypatch.setattr(sac, name, lambda *a, loss=loss, spy=spy: (spy(*a), loss(*a))[1])
    rows, settings = [], {**TINY, "total_timesteps": 300}
    agent = sac.train(sac.Config(WIDE, **settings, alpha=0.2), report=rows.append)
    assert critics[0] == pytest.approx(0.2) and len(set(critics)) > 20
    assert rows[-1]["alpha"] == pytest.approx(critics[-1], rel=0.05) and critics[-1] != pytest.approx(0.2)
    assert {alpha.item() for alpha in actors} <= set(critics)
    assert targets == {round(np.log(4) - 1, 5)}  # -1 for actions in [-1, 1]; these are four times as wide
    assert all(parameter.requires_grad for parameter in agent.parameters())


@pytest.mark.parametrize("size, expected", [(50, 50), (1_000_000, 204)])
def test_buffer_is_no_larger_than_needed(monkeypatch, size, expected):
    sizes, init = [], sac.ReplayBuffer.__init__
    monkeypatch.setattr(sac.ReplayBuffer, "__init__", lambda self, *a: sizes.append(a[0]) or init(self, *a))
    sac.train(sac.Config(WIDE, **{**TINY, "total_timesteps": 200, "buffer_size": size}), report=quiet)
    assert sizes == [expected]


@pytest.mark.learning
def test_solves_pendulum():
    config = sac.Config("Pendulum-v1", seed=11, total_timesteps=10_000)
    agent = sac.train(config, report=quiet)
    assert sac.evaluate(agent, config.env_id, 100, config.seed + 10_000).mean() >= -200
