"""DQN: targets by hand, replay against a plain list, the target network, exploration, and learning."""

import copy
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import dqn

TINY = dict(
    num_envs=8,
    hidden_size=32,
    buffer_size=1_000,
    batch_size=64,
    learning_starts=200,
    train_frequency=4,
    tau=0.2,
    reward_scale=1.0,
    learning_rate=1e-2,
    exploration_fraction=0.3,
)


class Table(nn.Module):
    """Q-values from a table; an observation is its row number."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, obs):
        return self.rows[obs.squeeze(1).long()]


def batch(obs, action, reward, next_obs, terminated):
    return dqn.Batch(
        torch.tensor([[float(obs)]]),
        torch.tensor([action]),
        torch.tensor([reward]),
        torch.tensor([[float(next_obs)]]),
        torch.tensor([terminated]),
    )


@pytest.mark.parametrize(
    "reward, terminated, double, q_value, target",
    [
        (1.0, False, False, 2.0, 1 + 0.9 * 7),  # bootstraps from the target network's maximum
        (1.0, True, False, 2.0, 1.0),  # a terminal state is worth nothing
        (-3.0, False, False, 2.0, -3 + 0.9 * 7),
        (1.0, False, True, 2.0, 1 + 0.9 * 5),  # Q prefers action 0 there, the target network rates it 5
        (1.0, True, True, 2.0, 1.0),
        (1.5, True, False, 2.0, 1.5),  # 0.5 apart: the quadratic side of Huber's loss
    ],
)
def test_td_loss_by_hand(reward, terminated, double, q_value, target):
    q_network = Table([[0.0, q_value], [9.0, 8.0]])
    target_network = Table([[-1.0, -1.0], [5.0, 7.0]])
    loss = dqn.td_loss(q_network, target_network, batch(0, 1, reward, 1, terminated), 0.9, double)
    error = abs(q_value - target)
    assert loss.item() == pytest.approx(0.5 * error**2 if error < 1 else error - 0.5, rel=1e-6)
    loss.backward()
    slope = np.clip(q_value - target, -1, 1)
    assert q_network.rows.grad.numpy() == pytest.approx(np.array([[0, slope], [0, 0]]), rel=1e-6)
    assert target_network.rows.grad is None


def test_td_loss_is_the_mean_over_the_batch():
    q_network, target_network = (
        Table([[1.0, 2.0], [3.0, 4.0], [0.0, 0.5]]),
        Table([[2.0, 1.0], [4.0, 3.0], [1.0, 6.0]]),
    )
    one = [batch(0, 0, 1.0, 1, False), batch(1, 1, 2.0, 2, True), batch(2, 1, 0.0, 0, False)]
    together = dqn.Batch(*(torch.cat(column) for column in zip(*one, strict=True)))
    apart = [dqn.td_loss(q_network, target_network, b, 0.5).item() for b in one]
    assert dqn.td_loss(q_network, target_network, together, 0.5).item() == pytest.approx(np.mean(apart))


@pytest.mark.parametrize("size, adds", [(7, [3, 3, 3, 1, 2, 5]), (4, [4, 4, 2]), (5, [9, 1]), (100, [3, 4])])
def test_replay_buffer_is_a_deque(size, adds):
    buffer, plain, count = dqn.ReplayBuffer(size, 2), deque(maxlen=size), 0
    for n in adds:
        number = np.arange(count, count + n)
        transitions = (
            np.stack([number, -number], 1),
            number % 3,
            number / 2,
            np.stack([number + 1, number], 1),
            number % 2 == 0,
        )
        buffer.add(*transitions)
        plain.extend(zip(*transitions, strict=True))
        count += n
        kept = sorted(buffer.arrays.obs[: min(count, size), 0])
        assert kept == sorted(t[0][0] for t in plain)
    drawn = buffer.sample(2_000, np.random.default_rng(0))
    known = {int(t[0][0]): t for t in plain}
    assert set(drawn.obs[:, 0].int().tolist()) == set(known)  # every transition is drawn, no empty slot is
    for i in range(200):
        for value, expected in zip(drawn, known[int(drawn.obs[i, 0])], strict=True):
            assert value[i].numpy() == pytest.approx(np.asarray(expected, float))
    counts = np.unique(drawn.obs[:, 0], return_counts=True)[1]
    assert counts.min() > 0.7 * 2_000 / len(known)  # uniformly
    floats, kinds = torch.float32, [column.dtype for column in drawn]
    assert kinds == [floats, torch.int64, floats, floats, torch.bool]
    assert drawn.obs.shape == (2_000, 2) and drawn.reward.shape == drawn.terminated.shape == (2_000,)


def spy_on_losses(monkeypatch):
    """Copies of both networks' weights, before each gradient step."""
    seen, td_loss = [], dqn.td_loss

    def spy(q_network, target_network, *rest):
        assert all(not p.requires_grad for p in target_network.parameters())
        seen.append([copy.deepcopy(network.state_dict()) for network in (q_network, target_network)])
        return td_loss(q_network, target_network, *rest)

    monkeypatch.setattr(dqn, "td_loss", spy)
    return seen


@pytest.mark.parametrize("tau, every", [(1.0, 5), (1.0, 1), (0.25, 1), (0.25, 3)])
def test_target_network_is_synchronised_by_gradient_steps(monkeypatch, tau, every):
    seen = spy_on_losses(monkeypatch)
    dqn.train(
        dqn.Config(
            "CartPole-v1", total_timesteps=400, **{**TINY, "tau": tau}, target_network_frequency=every
        ),
        report=lambda row: None,
    )
    assert len(seen) == (400 - 200) // 4
    for i in range(1, len(seen)):
        (_, before), (online, target) = seen[i - 1], seen[i]
        for name, weights in target.items():
            expected = torch.lerp(before[name], online[name], tau) if i % every == 0 else before[name]
            assert torch.allclose(weights, expected, atol=1e-7), (i, name)


@pytest.mark.parametrize("fraction, start, end", [(0.5, 1.0, 0.1), (0.0, 1.0, 0.25), (1.0, 0.8, 0.0)])
def test_epsilon_is_annealed_by_environment_step(monkeypatch, fraction, start, end):
    rows, moment = [], iter(range(0, 100_000, 10))
    monkeypatch.setattr(dqn.time, "perf_counter", lambda: next(moment))  # so that every step reports
    dqn.train(
        dqn.Config(
            "probes:Constant-v0",
            total_timesteps=1_000,
            num_envs=10,
            learning_starts=5_000,
            start_e=start,
            end_e=end,
            exploration_fraction=fraction,
        ),
        report=rows.append,
    )
    assert [row["step"] for row in rows] == list(range(10, 1_001, 10))
    for row in rows:
        share = min(1, row["step"] / (fraction * 1_000)) if fraction else 1
        assert row["epsilon"] == pytest.approx(start + share * (end - start))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_random_actions(monkeypatch, epsilon):
    actions, make_vec = [], gym.make_vec

    class Recorder(gym.vector.VectorWrapper):
        def step(self, action):
            actions.append(action)
            return super().step(action)

    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: Recorder(make_vec(*args, **kwargs)))
    monkeypatch.setattr(dqn.QNetwork, "act", lambda self, obs: np.full(len(obs), 1))
    dqn.train(
        dqn.Config(
            "probes:Constant-v0",
            total_timesteps=8_000,
            num_envs=8,
            learning_starts=10_000,
            start_e=epsilon,
            end_e=epsilon,
        ),
        report=lambda row: None,
    )
    drawn = np.array(actions) == 0  # (1000, 8)
    assert drawn.mean() == pytest.approx(epsilon / 2, abs=0.02)
    both = drawn[:, 1:] & drawn[:, :-1]  # each environment draws its own
    assert both.mean() == pytest.approx((epsilon / 2) ** 2, abs=0.02)


def test_what_is_stored(monkeypatch):
    """Chain: 3 steps an episode, terminated in even and truncated in odd ones; obs = (step, episode)."""
    buffers, init = [], dqn.ReplayBuffer.__init__
    monkeypatch.setattr(
        dqn.ReplayBuffer, "__init__", lambda self, *args: (buffers.append(self), init(self, *args))[1]
    )
    dqn.train(
        dqn.Config(
            "probes:Alternating-v0", reward_scale=1.0, total_timesteps=160, num_envs=2, learning_starts=1_000
        ),
        report=lambda row: None,
    )
    buffer = buffers[0]
    obs, _, reward, next_obs, terminated = (array[: buffer.added] for array in buffer.arrays)
    assert buffer.added == 160 - 2 * 20  # of four vector steps one is a reset
    assert (
        next_obs[:, 0] == obs[:, 0] + 1
    ).all()  # the true last observation, never the next episode's first
    assert (next_obs[:, 1] == obs[:, 1]).all()
    last, even = next_obs[:, 0] == 3, obs[:, 1] % 2 == 0
    assert last.sum() == 40 and (reward == last).all()
    assert (terminated == (last & even)).all()  # running out of time does not terminate


def q_values(env_id, observations, **settings):
    agent = dqn.train(
        dqn.Config(env_id, **{**TINY, "total_timesteps": 2_000, **settings}), report=lambda row: None
    )
    with torch.no_grad():
        return agent(torch.tensor(observations, dtype=torch.float32)).numpy(), agent


def test_probe_constant_reward():
    values, _ = q_values("probes:Constant-v0", [[0, 1]])
    assert values == pytest.approx(np.ones((1, 2)), abs=0.05)


def test_probe_reward_by_action():
    values, agent = q_values("probes:ByAction-v0", [[0, 1]])
    assert values == pytest.approx(np.array([[0, 1]]), abs=0.05)
    assert dqn.evaluate(agent, "probes:ByAction-v0", 5, seed=0) == pytest.approx(np.ones(5))


@pytest.mark.parametrize("double", [False, True])
def test_probe_value_two_steps_ahead(double):
    values, _ = q_values("probes:TwoAhead-v0", [[0, 1], [1, 1], [2, 1]], gamma=0.5, double=double)
    assert values == pytest.approx(np.array([[0.25] * 2, [0.5] * 2, [1.0] * 2]), abs=0.05)


def test_probe_truncation_bootstraps_and_termination_does_not():
    observations = [[0, 1], [1, 1], [2, 1], [3, 1]]
    values, _ = q_values("probes:Terminated-v0", observations, gamma=0.5)
    assert values.mean(1) == pytest.approx([1.875, 1.75, 1.5, 1.0], abs=0.05)
    values, _ = q_values("probes:Truncated-v0", observations, gamma=0.5)
    assert values.mean(1).min() > 1.3  # without the bootstrap the last one would be 1


@pytest.mark.parametrize(
    "env_id, bounds",
    [("CartPole-v1", [4.8, 0, 0.41888, 0]), ("MountainCar-v0", [1.2, 0.07])],  # 0: none
)
def test_bounded_observations_are_weighed_by_their_bound(env_id, bounds):
    agent = dqn.QNetwork(dqn.Config(env_id, seed=6))
    torch.manual_seed(6)
    plain = nn.Linear(len(bounds), agent[0].out_features).weight.detach().numpy()
    factor = [4.8 / bound if bound else 1 for bound in bounds]
    assert agent[0].weight.detach().numpy() == pytest.approx(plain * factor, rel=1e-4)
    assert [type(layer).__name__ for layer in agent] == ["Linear", "ReLU"] * 2 + ["Linear"]


def test_act_is_greedy():
    agent = dqn.QNetwork(dqn.Config())
    obs = np.random.default_rng(0).normal(size=(32, 4))  # float64, as some environments give
    action = agent.act(obs)
    with torch.no_grad():
        expected = agent(torch.tensor(obs, dtype=torch.float32)).argmax(1)
    assert action.dtype == np.int64 and action.shape == (32,) and (action == expected.numpy()).all()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_solves_cartpole(seed):
    config = dqn.Config(seed=seed)
    agent = dqn.train(config, report=lambda row: None)
    assert dqn.evaluate(agent, config.env_id, 100, seed + 10_000).mean() >= 475
    assert agent.steps < config.total_timesteps  # solved, and seen to be
