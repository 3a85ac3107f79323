"""SAC (Haarnoja et al. 2018, arXiv:1812.05905): maximise return plus entropy, from replayed steps.

`python sac.py` solves a double pendulum in a minute. It prints a row per evaluation until it is solved.
env.step -> ReplayBuffer.add -> ReplayBuffer.sample -> critic_loss, actor_loss, temperature_loss -> Adam
"""
# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6", "pybullet-arm64==3.2.8"]
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
    """Every setting. Each is also a flag: `python sac.py --gamma 0.9`."""
    env_id: str = "demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0"  # Gymnasium id, or module:id
    seed: int = 1  # seeds weights, environments, actions and replay
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 100_000  # environment steps, unless solved before
    eval_frequency: int = 5_000  # environment steps between evaluations
    num_envs: int = 4  # environments side by side
    max_episode_steps: int = 200  # training episodes are cut here, so that fresh starts keep coming
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 3e-3  # step size of Adam, for actor, critics and temperature
    gamma: float = 0.995  # discount factor
    batch_size: int = 256  # transitions per gradient step
    tau: float = 0.05  # how far the target critics move per gradient step; 1 copies the critics


class Actor(nn.Sequential):
    """pi(a|s), the tanh of a Gaussian of this mean and log-std (B, 2 act_dim), and the temperature alpha."""
    def __init__(self, obs_space, action_space, hidden, alpha):
        assert len(obs_space.shape or ()) == 1, f"{obs_space}: expected flat observations"
        assert action_space.shape and action_space.is_bounded(), f"{action_space}: expected a Box with bounds"
        super().__init__(nn.Linear(obs_space.shape[0], hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                         nn.ReLU(), nn.Linear(hidden, 2 * action_space.shape[0]))
        self.action_space, self.log_alpha = action_space, nn.Parameter(torch.tensor(alpha).log())

    def sample(self, obs):
        """Draw actions (B, act_dim), differentiably, and log pi of each (B,) (eq. 21, made stable)."""
        mean, log_std = self(torch.as_tensor(obs, dtype=torch.float32)).chunk(2, -1)
        gaussian = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        u = gaussian.rsample()
        log_slope = 2 * (np.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return u.tanh(), (gaussian.log_prob(u) - log_slope).sum(-1)

    def execute(self, action):
        """What env.step takes for the policy's action: [-1, 1] is scaled to the bounds."""
        low, high = self.action_space.low, self.action_space.high
        return np.clip((low + high + (high - low) * action) / 2, low, high).astype(low.dtype)

    def act(self, obs):
        """Greedy actions (B, act_dim) for NumPy observations (B, obs_dim)."""
        mean = self(torch.as_tensor(obs, dtype=torch.float32)).chunk(2, -1)[0].detach()
        return self.execute(mean.tanh().numpy())


class Critics(nn.ModuleList):
    """Two networks Q(s, a): obs (B, obs_dim) and action (B, act_dim) to (2, B)."""
    def __init__(self, inputs, hidden):
        super().__init__(nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                       nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(2))

    def forward(self, obs, action):
        return torch.cat([net(torch.cat([obs, action], -1)) for net in self], -1).T


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


def critic_loss(critics, target_critics, actor, batch, alpha, gamma):
    """Sum over both Q of E[(Q(s, a) - y)^2] (twice eq. 5), with a' ~ pi(.|s') and
    y = r + gamma (1 - terminated) (min Q_target(s', a') - alpha log pi(a'|s')). Truncation does not cut."""
    with torch.no_grad():
        next_action, next_log_prob = actor.sample(batch.next_obs)
        next_value = target_critics(batch.next_obs, next_action).amin(0) - alpha * next_log_prob  # (B,)
        target = batch.reward + gamma * (1 - batch.terminated.float()) * next_value
    return (critics(batch.obs, batch.action) - target).square().mean(1).sum()


def actor_loss(critics, obs, action, log_prob, alpha):
    """E[alpha log pi(a|s) - min Q(s, a)] for actions just drawn from pi (eq. 7)."""
    return (alpha * log_prob - critics(obs, action).amin(0)).mean()


def temperature_loss(log_alpha, log_prob, target_entropy):
    """-log alpha E[log pi(a|s) + target_entropy]: alpha falls while entropy is above its target (eq. 18)."""
    return -log_alpha * (log_prob.detach() + target_entropy).mean()


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
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs, max_episode_steps=config.max_episode_steps)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP, "expected NEXT_STEP resets"
    agent = Actor(obs_space, action_space, config.hidden_size, alpha=0.2)
    critics = Critics(obs_space.shape[0] + action_space.shape[0], config.hidden_size)
    target_critics = copy.deepcopy(critics)
    weights = [*agent.parameters(), *critics.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate, fused=True)
    buffer = ReplayBuffer(config.total_timesteps, obs_space.shape, action_space.shape)
    obs, done = envs.reset(seed=config.seed)[0], np.zeros(config.num_envs, bool)

    for step in range(config.num_envs, config.total_timesteps + config.num_envs, config.num_envs):
        # Act: draw from the policy.
        action = agent.sample(obs)[0].detach().numpy()
        next_obs, reward, terminated, truncated, _ = envs.step(agent.execute(action))

        # Store. The step after the end of an episode only resets it, so it is left out.
        buffer.add(*(x[~done] for x in (obs, action, reward, next_obs, terminated)))
        obs, done = next_obs, terminated | truncated

        # Learn, then let the target critics follow.
        batch, alpha = buffer.sample(config.batch_size), agent.log_alpha.detach().exp()
        action, log_prob = agent.sample(batch.obs)
        policy_loss = actor_loss(critics, batch.obs, action, log_prob, alpha)
        policy_loss = policy_loss + temperature_loss(agent.log_alpha, log_prob, -action_space.shape[0])
        loss = critic_loss(critics, target_critics, agent, batch, alpha, config.gamma)
        if not torch.isfinite(loss + policy_loss):
            raise FloatingPointError(f"the losses are {loss} and {policy_loss} at step {step}")
        optimizer.zero_grad()
        policy_loss.backward(inputs=list(agent.parameters()))  # the critics do not learn from it
        loss.backward()
        optimizer.step()
        for target, source in zip(target_critics.parameters(), critics.parameters()):
            target.data.lerp_(source.data, config.tau)

        # Evaluate now and then, and stop when solved, in these episodes and in 100 others.
        if step % config.eval_frequency < config.num_envs or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, 40, config.seed + step)
            report(f"step {step:6}  return {returns.mean():6.1f}  critic_loss {loss:.2e}  alpha {alpha:.2e}")
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, f"{config.save}.tmp")
                os.replace(f"{config.save}.tmp", config.save)
            threshold = envs.spec.reward_threshold
            if threshold is not None and returns.mean() - returns.std() >= threshold:
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 1_000)
                if returns.mean() - returns.std() >= threshold:
                    break

    envs.close()
    print(f"sac.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {step:,} steps")
    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SAC. Every setting of Config is a flag.")
    for field in fields(Config):
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    main(Config(**vars(parser.parse_args())))
