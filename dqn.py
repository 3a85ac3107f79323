"""DQN (Mnih et al. 2015, doi:10.1038/nature14236): learn Q(s, a) from replayed steps.

`python dqn.py` solves CartPole-v1 in seconds. It prints a row for each greedy evaluation.
env.step -> ReplayBuffer.extend -> ReplayBuffer.sample -> td_loss -> Adam -> target network"""
# SPDX-License-Identifier: MIT-0
import argparse
import copy
from collections import namedtuple
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn

Batch = namedtuple("Batch", "obs action reward next_obs terminated")  # of transitions: (B, ...)


@dataclass(frozen=True)
class Config:  # every setting is also a flag: `python dqn.py --gamma 0.9`
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:id; flat observations, Discrete actions
    seed: int = 1  # seeds weights, environments, actions and replay
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 160_000  # environment steps, unless solved before
    eval_frequency: int = 3_200  # environment steps between evaluations
    eval_episodes: int = 20  # greedy episodes per evaluation
    num_envs: int = 16  # environments side by side; each steps once per gradient step
    hidden_size: int = 64  # units in each hidden layer
    learning_rate: float = 2e-3  # step size of Adam
    gamma: float = 0.99  # discount factor
    reward_scale: float = 1.0  # rewards are multiplied by this before learning
    buffer_size: int = 20_000  # transitions kept for replay
    batch_size: int = 128  # transitions per gradient step
    tau: float = 0.1  # how far the target network moves per update; 1 copies the Q-network
    end_e: float = 0.05  # epsilon, the probability of a random action, falls from 1 to this
    exploration_fraction: float = 0.1  # share of total_timesteps in which it would reach 0


class QNetwork(nn.Sequential):
    """Q(s, .) for all actions: obs (B, obs_dim) to (B, num_actions)."""
    def __init__(self, obs_space, action_space, hidden_size):
        super().__init__()
        flat = isinstance(obs_space, gym.spaces.Box) and len(obs_space.shape) == 1
        discrete = isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0
        assert flat and discrete, f"not flat Box, Discrete from 0: {obs_space}, {action_space}"
        self.action_space = action_space
        self.extend([  # LayerNorm lets Adam take large steps
            nn.Linear(obs_space.shape[0], hidden_size), nn.LayerNorm(hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, int(action_space.n))])

    @torch.no_grad()
    def act(self, obs):
        """Greedy actions (B,) for NumPy observations (B, obs_dim)."""
        q_values = self(torch.as_tensor(obs, dtype=torch.float32))
        return q_values.argmax(-1).numpy().astype(self.action_space.dtype)


class ReplayBuffer(list):
    """Transitions, each a tuple in the order of Batch."""
    def sample(self, batch_size):
        """Draw a Batch of tensors (B, ...), uniformly and with replacement."""
        rows = [self[i] for i in np.random.randint(len(self), size=batch_size)]
        return Batch(*(torch.tensor(np.array(column, np.float32)) for column in zip(*rows)))


def td_loss(q_network, target_network, batch, gamma):
    """Huber loss of Q(s, a) against r + gamma (1 - terminated) max_a' Q_target(s', a')."""
    with torch.no_grad():
        next_value = target_network(batch.next_obs).amax(1)  # (B,)
        target = batch.reward + gamma * (1 - batch.terminated) * next_value
    q_value = q_network(batch.obs).gather(1, batch.action.long().unsqueeze(1)).squeeze(1)  # (B,)
    return nn.functional.smooth_l1_loss(q_value, target)


def evaluate(agent, env_id, episodes, seed):
    """Undiscounted returns (episodes,) of the greedy policy, each episode cut at 10,000 steps."""
    envs = gym.make_vec(env_id, num_envs=episodes)
    obs, _ = envs.reset(seed=seed)
    running, rewards = np.ones(episodes, bool), []
    while running.any() and len(rewards) < 10_000:
        obs, reward, terminated, truncated, _ = envs.step(agent.act(obs))
        rewards.append(np.where(running, reward, 0))
        running &= ~np.logical_or(terminated, truncated)
    envs.close()
    return np.sum(rewards, axis=0)


def show(row):
    """Print a row, at once even into a file."""
    print(*(f"{name} {value:<9.7g}" for name, value in row.items()), flush=True)


def main(config=Config(), report=show):
    """Train an agent and return it. `report` gets a dict for each evaluation."""
    np.random.seed(config.seed)  # for replay, and whatever else draws from it
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are faster on one core
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs)
    assert envs.metadata.get("autoreset_mode") == gym.vector.AutoresetMode.NEXT_STEP, "NEXT_STEP"
    q_net = QNetwork(envs.single_observation_space, envs.single_action_space, config.hidden_size)
    agent, best_return, target_net = q_net, -np.inf, copy.deepcopy(q_net)
    adam = torch.optim.Adam(q_net.parameters(), config.learning_rate, fused=True)  # faster
    threshold = np.inf if envs.spec.reward_threshold is None else envs.spec.reward_threshold
    obs, done = np.array(envs.reset(seed=config.seed)[0]), np.zeros(config.num_envs, bool)
    buffer, q_loss = ReplayBuffer(), torch.tensor(torch.nan)  # no loss yet

    for step in range(0, config.total_timesteps + config.num_envs, config.num_envs):
        fall = step / max(1, config.exploration_fraction * config.total_timesteps)
        epsilon = max(config.end_e, 1 - fall)

        # Evaluate at the start, whenever eval_frequency steps have passed, and at the end.
        if step % config.eval_frequency < config.num_envs or step >= config.total_timesteps:
            returns = evaluate(q_net, config.env_id, config.eval_episodes, config.seed + step)
            report({"step": step, "return": returns.mean().item(),
                    "td_loss": q_loss.item(), "epsilon": epsilon})
            if returns.mean() >= best_return or np.mean(returns >= threshold) >= 0.99:  # the best
                agent, best_return = copy.deepcopy(q_net), returns.mean()  # DQN may lose it again
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, config.save)
            if np.mean(returns >= threshold) >= 0.99 or step >= config.total_timesteps:  # judge it
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 10**6)
            solved = np.mean(returns >= threshold) >= 0.99
            if solved or step >= config.total_timesteps:
                envs.close()
                verdict = "solved" if solved else "not solved" if threshold < np.inf else "ended"
                print(f"{verdict} in {step} steps: mean return {returns.mean():.4g}")
                return agent

        # Act: at random with probability epsilon, else greedily.
        random_action = np.random.randint(envs.single_action_space.n, size=config.num_envs)
        action = np.where(np.random.rand(config.num_envs) < epsilon, random_action, q_net.act(obs))
        next_obs, reward, terminated, truncated, _ = envs.step(action)

        # Store, except steps that only reset: here `done` is still that of the step before.
        transitions = obs, action, config.reward_scale * reward, next_obs, terminated
        buffer.extend(zip(*(array[~done] for array in transitions)))
        del buffer[:-config.buffer_size]  # the oldest
        obs, done = np.array(next_obs), np.logical_or(terminated, truncated)  # both are copies

        # Learn, then let the target network follow.
        q_loss = td_loss(q_net, target_net, buffer.sample(config.batch_size), config.gamma)
        adam.zero_grad()
        q_loss.backward()
        adam.step()
        for target, source in zip(target_net.parameters(), q_net.parameters()):
            target.data.lerp_(source.data, config.tau)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="DQN. Every setting of Config is a flag.")
    for field in fields(Config):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=field.type, default=field.default, help="(%(default)s)")
    main(Config(**vars(parser.parse_args())))
