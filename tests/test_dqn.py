"""DQN: its loss by hand, and exploration."""
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import dqn
from tiny import spy, train, weights


def test_td_loss_by_hand():
    """With one-hot states, the weights (action, state) of a linear layer are Q-values."""
    q_network, target_network = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    q_network.weight.data = torch.tensor([[3.0, 9.0], [2.0, 8.0]])
    target_network.weight.data = torch.tensor([[-1.0, 5.0], [-1.0, 7.0]])
    obs, next_obs = torch.eye(2)[[0, 0, 0]], torch.eye(2)[[1, 1, 1]]
    action, terminated = torch.tensor([1, 0, 1]), torch.tensor([0.0, 0.0, 1.0])
    batch = dqn.Batch(obs, action, torch.tensor([1.0, -3.0, 1.5]), next_obs, terminated)
    loss = dqn.td_loss(q_network, target_network, batch, gamma=0.9)
    loss.backward()
    errors = 2 - (1 + 0.9 * 7), 3 - (-3 + 0.9 * 7), 2 - 1.5  # Q(s, a) - target
    huber = -errors[0] - 0.5, errors[1]**2 / 2, errors[2]**2 / 2
    assert loss.item() == pytest.approx(sum(huber) / 3)
    slopes = torch.tensor([[errors[1], 0], [-1 + errors[2], 0]]) / 3
    assert torch.allclose(q_network.weight.grad, slopes) and target_network.weight.grad is None


@pytest.mark.parametrize("fraction, fall", [(0.5, 50), (0.0, 1)])
def test_epsilon_falls_by_environment_step(fraction, fall, monkeypatch):
    monkeypatch.setattr(dqn, "evaluate", lambda *_: np.zeros(1))
    settings = dict(total_timesteps=100, eval_frequency=4, end_e=0.2)
    _, rows = train("dqn", exploration_fraction=fraction, **settings)
    by_hand = [max(0.2, 1 - step / fall) for step in range(0, 101, 4)]
    assert [row["epsilon"] for row in rows] == pytest.approx(by_hand)


def test_epsilon_is_the_probability_of_a_random_action(monkeypatch):
    actions = []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda _, __, act: actions.append(act))
    monkeypatch.setattr(dqn.QNetwork, "act", lambda self, obs: np.ones(len(obs), int))
    train("dqn", num_envs=8, total_timesteps=2_000, exploration_fraction=0, end_e=0.3)
    other = np.array([action for action in actions if len(action) == 8]) == 0  # (250, 8)
    both = other[:, 1:] & other[:, :-1]  # each environment draws its own
    assert (other.mean(), both.mean()) == pytest.approx((0.3 / 2, (0.3 / 2)**2), abs=0.02)


def test_the_best_agent_by_its_rows_is_saved_and_given(monkeypatch, tmp_path):
    returns = iter([1, [9] * 19 + [0], 5, 3, 5, 3, 2, 0])  # 5 passes; 3 and 0 are 100 others
    seen, save = [], str(tmp_path / "agent.pt")
    monkeypatch.setattr(gym.spec("ByActions-v0"), "reward_threshold", 4)
    monkeypatch.setattr(dqn, "evaluate", lambda agent, *_: (
        seen.append(weights(agent)) or np.full(20, next(returns))))
    agent, _ = train("dqn", total_timesteps=512, save=save)
    assert weights(agent) == seen[4] == seen[5] == seen[7] != seen[2] == seen[3]
    assert str(torch.load(save)["weights"]) == str(agent.state_dict())
