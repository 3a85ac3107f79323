"""DQN: its loss by hand, exploration, and values that are known."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import dqn
from tiny import spy, train


class Table(nn.Module):
    """Q-values from a table; an observation is its row number."""
    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, obs):
        return self.rows[obs[:, 0].long()]


def test_td_loss_by_hand():
    """Four transitions from row 0 to row 1: the loss and its slope are means over them."""
    q_network, target_network = Table([[3.0, 2.0], [9.0, 8.0]]), Table([[-1.0, -1.0], [5.0, 7.0]])
    obs, reward, terminated = torch.zeros(4, 1), [1.0, -3.0, 1.0, 1.5], [0.0, 0.0, 1.0, 1.0]
    columns = obs, torch.tensor([1, 0, 1, 1]), torch.tensor(reward), obs + 1, torch.tensor(terminated)
    loss = dqn.td_loss(q_network, target_network, dqn.Batch(*columns), 0.9)
    loss.backward()
    target = [1 + 0.9 * 7, -3 + 0.9 * 7, 1, 1.5]  # after a termination nothing more comes
    error = np.array([2, 3, 2, 2]) - target
    huber = np.where(abs(error) < 1, error**2 / 2, abs(error) - 0.5)
    assert loss.shape == () and loss.item() == pytest.approx(huber.mean(), rel=1e-6)
    slope = error.clip(-1, 1) / 4
    by_hand = np.array([[slope[1], slope[[0, 2, 3]].sum()], [0, 0]])
    assert q_network.rows.grad.numpy() == pytest.approx(by_hand, rel=1e-5)
    assert target_network.rows.grad is None


def test_epsilon_falls_by_environment_step(monkeypatch):
    monkeypatch.setattr(dqn, "evaluate", lambda *_: np.zeros(1))
    _, rows = train("dqn", total_timesteps=100, eval_frequency=4, end_e=0.2, exploration_fraction=0.5)
    epsilon = [float(re.search(r"epsilon (\S+)", row)[1]) for row in rows]
    assert epsilon == pytest.approx([max(0.2, 1 - step / 50) for step in range(4, 101, 4)], abs=0.006)


def test_epsilon_is_the_probability_of_a_random_action(monkeypatch):
    actions = []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda _, envs, action: actions.append(action))
    monkeypatch.setattr(dqn.QNetwork, "act", lambda self, obs: np.ones(len(obs), int))
    train("dqn", "Constant", num_envs=8, total_timesteps=4_000, exploration_fraction=1e-9, end_e=0.3)
    other = np.array([action for action in actions if len(action) == 8]) == 0  # (500, 8)
    assert other.mean() == pytest.approx(0.3 / 2, abs=0.02)
    both = other[:, 1:] & other[:, :-1]  # each environment draws its own
    assert both.mean() == pytest.approx((0.3 / 2) ** 2, abs=0.01)


def test_act_is_greedy():
    agent, obs = dqn.QNetwork(4, 3, 16), np.random.default_rng(0).normal(size=(32, 4))
    q_values = agent(torch.tensor(obs, dtype=torch.float32))
    assert q_values.shape == (32, 3) and (agent.act(obs) == q_values.argmax(1).numpy()).all()


def learned_values(name, steps, **settings):
    """Q-values (steps, 2) on a probe."""
    agent, _ = train("dqn", name, total_timesteps=2_000, eval_frequency=2_000, num_envs=8, hidden_size=32,
                     buffer_size=1_000, batch_size=64, tau=0.2, learning_rate=1e-2, **settings)
    return agent(torch.tensor([[step, 1.0] for step in range(steps)])).detach().numpy()


def test_values_of_rewards_at_once_and_two_steps_ahead():
    assert learned_values("Constant", 1) == pytest.approx(np.ones((1, 2)), abs=0.05)
    assert learned_values("ByAction", 1) == pytest.approx(np.array([[0, 1]]), abs=0.05)
    assert learned_values("Ahead", 3, gamma=0.5).mean(1) == pytest.approx([0.25, 0.5, 1.0], abs=0.05)


def test_values_at_a_termination_and_at_a_truncation():
    terminated, truncated = (learned_values(name, 4, gamma=0.5) for name in ("Terminated", "Truncated"))
    assert terminated.mean(1) == pytest.approx([1.875, 1.75, 1.5, 1.0], abs=0.05)
    assert truncated.mean(1).min() > 1.3  # it bootstraps
