"""DQN (Mnih et al. 2015, doi:10.1038/nature14236): learn Q(s, a) from replayed steps, then act greedily.

`python dqn.py` solves CartPole-v1 in seconds. It prints a row per evaluation until it is solved.
env.step -> ReplayBuffer.add -> ReplayBuffer.sample -> td_loss -> Adam -> target network
"""
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0",
#                 "numpy==2.2.6; python_version < '3.14'", "numpy==2.4.6; python_version >= '3.14'"]
# ///
import argparse
import copy
import os
from collections import namedtuple
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn

Batch = namedtuple("Batch", "obs action reward next_obs terminated")  # transitions, each array (B, ...)


@dataclass(frozen=True)
class Config:
    """Every setting. Each is also a flag: `python dqn.py --gamma 0.9`."""
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:id; flat observations, Discrete actions
    seed: int = 1  # seeds weights, environments, exploration and replay
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 160_000  # environment steps, unless solved before
    eval_frequency: int = 3_200  # environment steps between evaluations
    num_envs: int = 16  # environments side by side
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 2e-3  # step size of Adam
    gamma: float = 0.99  # discount factor
    buffer_size: int = 20_000  # transitions kept for replay
    batch_size: int = 128  # transitions per gradient step
    tau: float = 0.1  # how far the target network moves per gradient step; 1 copies the Q-network
    end_e: float = 0.05  # epsilon, the probability of a random action, falls from 1 to this
    exploration_fraction: float = 0.1  # fraction of total_timesteps over which epsilon falls


class QNetwork(nn.Sequential):
    """Q(s, .) for all actions: obs (B, obs_dim) to (B, num_actions)."""
    def __init__(self, obs_dim, num_actions, hidden):
        super().__init__(nn.Linear(obs_dim, hidden), nn.LayerNorm(hidden), nn.ReLU(),
                         nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(),
                         nn.Linear(hidden, num_actions))

    def act(self, obs):
        """Greedy actions (B,) for NumPy observations (B, obs_dim)."""
        return self(torch.as_tensor(obs, dtype=torch.float32)).argmax(-1).numpy()


class ReplayBuffer:
    """The latest `size` transitions."""
    def __init__(self, size, obs_shape, action_shape):
        self.size, self.added = size, 0
        shapes = Batch(obs_shape, action_shape, (), obs_shape, ())
        self.data = Batch(*(torch.zeros(size, *shape) for shape in shapes))

    def add(self, *transitions):
        """Store N transitions, the arrays (N, ...) of a Batch, over the oldest ones once it is full."""
        index = (self.added + np.arange(len(transitions[0]))) % self.size
        for stored, new in zip(self.data, transitions):
            stored[index] = torch.as_tensor(new, dtype=torch.float32)
        self.added += len(index)

    def sample(self, batch_size):
        """Draw a Batch of tensors (B, ...), uniformly and with replacement."""
        index = torch.randint(min(self.added, self.size), (batch_size,))
        return Batch(*(stored[index] for stored in self.data))


def td_loss(q_network, target_network, batch, gamma):
    """Huber loss of Q(s, a) against r + gamma (1 - terminated) max_a' Q_target(s', a'), a scalar.
    No gradient reaches the target. Truncation does not cut the bootstrap."""
    with torch.no_grad():
        next_value = target_network(batch.next_obs).amax(1)  # (B,)
        target = batch.reward + gamma * (1 - batch.terminated.float()) * next_value
    q_value = q_network(batch.obs).gather(1, batch.action.long().unsqueeze(1)).squeeze(1)  # (B,)
    return nn.functional.smooth_l1_loss(q_value, target)


def evaluate(agent, env_id, episodes, seed):
    """Undiscounted returns (episodes,) of the greedy policy. Warns if it cuts an episode, at 10,000 steps."""
    envs = gym.make_vec(env_id, num_envs=episodes)
    obs, _ = envs.reset(seed=seed)
    returns, running, steps = np.zeros(episodes), np.ones(episodes, bool), 0
    while running.any() and steps < 10_000:
        obs, reward, terminated, truncated, _ = envs.step(agent.act(obs))
        returns, running, steps = returns + reward * running, running & ~(terminated | truncated), steps + 1
    envs.close()
    if running.any():
        gym.logger.warn(f"{env_id}: {running.sum()} of {episodes} episodes were cut at 10,000 steps")
    return returns


def main(config=Config(), report=print):
    """Train an agent and return it; `report` gets a line per evaluation. Sets torch's seed and threads."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are faster on one core
    rng = np.random.default_rng(config.seed)
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP, "expected NEXT_STEP resets"
    assert len(obs_space.shape or ()) == 1, f"{obs_space}: expected flat observations"
    assert action_space.shape == () and action_space.start == 0, f"{action_space}: expected Discrete from 0"
    agent = QNetwork(obs_space.shape[0], int(action_space.n), config.hidden_size)
    target_network = copy.deepcopy(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, fused=True)
    buffer = ReplayBuffer(config.buffer_size, obs_space.shape, action_space.shape)
    obs, done = envs.reset(seed=config.seed)[0], np.zeros(config.num_envs, bool)

    for step in range(config.num_envs, config.total_timesteps + config.num_envs, config.num_envs):
        # Act: at random with probability epsilon, else greedily.
        epsilon = max(config.end_e, 1 - step / (config.exploration_fraction * config.total_timesteps))
        random_action = rng.integers(action_space.n, size=config.num_envs)
        action = np.where(rng.random(config.num_envs) < epsilon, random_action, agent.act(obs))
        next_obs, reward, terminated, truncated, _ = envs.step(action)

        # Store. The step after the end of an episode only resets it, so it is left out.
        buffer.add(*(x[~done] for x in (obs, action, reward, next_obs, terminated)))
        obs, done = next_obs, terminated | truncated

        # Learn, then let the target network follow.
        loss = td_loss(agent, target_network, buffer.sample(config.batch_size), config.gamma)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for target, source in zip(target_network.parameters(), agent.parameters()):
            target.data.lerp_(source.data, config.tau)

        # Evaluate now and then, and stop when solved, in these episodes and in 100 others.
        if step % config.eval_frequency < config.num_envs or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, 100, config.seed + step)
            report(f"step {step:6}  return {returns.mean():6.1f}  td_loss {loss:.4f}  epsilon {epsilon:.2f}")
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, f"{config.save}.tmp")
                os.replace(f"{config.save}.tmp", config.save)
            threshold = envs.spec.reward_threshold
            if threshold is not None and returns.mean() - returns.std() >= threshold:
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 1_000)
                if returns.mean() - returns.std() >= threshold:
                    break

    envs.close()
    print(f"dqn.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {step:,} steps")
    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="DQN. Every setting of Config is a flag.")
    for field in fields(Config):
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    main(Config(**vars(parser.parse_args())))
