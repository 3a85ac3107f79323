"""PPO (Schulman et al. 2017, arXiv:1707.06347): policy gradients that stay close to the policy that acted.

`python ppo.py` solves CartPole-v1 in seconds. It prints a row per evaluation until it is solved.
env.step -> make_batch -> gae -> clipped_surrogate + value loss - entropy -> Adam
"""
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0",
#                 "numpy==2.2.6; python_version < '3.14'", "numpy==2.4.6; python_version >= '3.14'"]
# ///
import argparse
import os
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal


@dataclass(frozen=True)
class Config:
    """Every setting. Each is also a flag: `python ppo.py --gamma 0.9`."""
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:id; flat observations, Discrete or Box actions
    seed: int = 1  # seeds weights, environments, actions and minibatches
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 65_536  # environment steps, unless solved before
    eval_frequency: int = 4_096  # environment steps between evaluations
    num_envs: int = 32  # N, environments side by side
    num_steps: int = 32  # T, steps of each environment per rollout
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 3e-3  # step size of Adam
    gamma: float = 0.98  # discount factor
    gae_lambda: float = 0.95  # 0 gives one-step advantages, 1 gives whole returns
    update_epochs: int = 10  # passes over each rollout
    num_minibatches: int = 2  # gradient steps per pass
    clip_coef: float = 0.2  # a probability ratio further than this from 1 gains nothing
    ent_coef: float = 0.0  # weight of the entropy bonus


class ActorCritic(nn.Module):
    """The policy pi(a|s), Categorical or Gaussian, and the value V(s)."""
    def __init__(self, obs_space, action_space, hidden):
        super().__init__()
        self.action_space, self.discrete = action_space, isinstance(action_space, gym.spaces.Discrete)
        assert len(obs_space.shape or ()) == 1, f"{obs_space}: expected flat observations"
        assert self.discrete or isinstance(action_space, gym.spaces.Box) and action_space.is_bounded(), (
            f"{action_space}: expected Discrete or a Box with bounds")
        outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.actor, self.critic = (  # the actor's outputs are logits, or the mean of the Gaussian
            nn.Sequential(nn.Linear(obs_space.shape[0], hidden), nn.Tanh(), nn.Linear(hidden, hidden),
                          nn.Tanh(), nn.Linear(hidden, size)) for size in (outputs, 1))
        self.log_std = nn.Parameter(torch.zeros(outputs))  # of the Gaussian, the same in all states

    def forward(self, obs):
        """The distribution pi(.|s) and the value V(s) (...,) for observations (..., obs_dim)."""
        obs = torch.as_tensor(obs, dtype=torch.float32)
        output, value = self.actor(obs), self.critic(obs).squeeze(-1)
        if self.discrete:
            return Categorical(logits=output), value
        return Independent(Normal(output, self.log_std.exp()), 1), value

    def execute(self, action):
        """What env.step takes for the policy's action. In a Box [-1, 1] is scaled to the bounds."""
        if self.discrete:
            return action + self.action_space.start
        low, high = self.action_space.low, self.action_space.high
        return np.clip((low + high + (high - low) * action) / 2, low, high).astype(low.dtype)

    def act(self, obs):
        """Greedy actions (B,) or (B, act_dim) for NumPy observations (B, obs_dim)."""
        return self.execute(self(obs)[0].mode.detach().numpy())


def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """Advantages sum_k (gamma lambda)^k delta_{t+k} (Schulman et al. 2016, eq. 16), everything (T, N), where
    delta = r + gamma (1 - terminated) V(s') - V(s). Truncation ends the sum, but not the bootstrap."""
    advantage = reward + gamma * (1 - terminated.to(reward)) * next_value - value
    for t in reversed(range(len(reward) - 1)):
        advantage[t] += gamma * gae_lambda * (1 - done[t].to(reward)) * advantage[t + 1]
    return advantage


@torch.no_grad()
def make_batch(rollout, agent, config):
    """From T tuples of arrays (N, ...): obs, action, log_prob, advantage, value target, tensors (B, ...)."""
    arrays = (torch.as_tensor(np.array(array, np.float32)) for array in zip(*rollout))
    obs, action, reward, next_obs, terminated, done, reset = arrays  # each (T, N, ...)
    (policy, value), (_, next_value) = agent(obs), agent(next_obs)
    advantage = gae(reward, value, next_value, terminated, done, config.gamma, config.gae_lambda)
    return [x[reset == 0] for x in (obs, action, policy.log_prob(action), advantage, advantage + value)]


def clipped_surrogate(log_prob, old_log_prob, advantage, clip_coef):
    """-E[min(ratio A, clip(ratio, 1 - c, 1 + c) A)] with ratio = pi / pi_old (PPO, eq. 7): (B,) to scalar."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage).mean()


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
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs)
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP, "expected NEXT_STEP resets"
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, config.hidden_size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, fused=True)
    obs, _ = envs.reset(seed=config.seed)
    done, rollout_size = np.zeros(config.num_envs, bool), config.num_envs * config.num_steps

    for step in range(rollout_size, config.total_timesteps + rollout_size, rollout_size):
        # Act and store. The step after the end of an episode only resets it; make_batch leaves it out.
        rollout = []
        for _ in range(config.num_steps):
            action = agent(obs)[0].sample().numpy()
            next_obs, reward, terminated, truncated, _ = envs.step(agent.execute(action))
            rollout.append((obs, action, reward, next_obs, terminated, terminated | truncated, done))
            obs, done = next_obs, terminated | truncated

        # Learn.
        batch = make_batch(rollout, agent, config)
        for _ in range(config.update_epochs):
            for index in torch.randperm(len(batch[0])).tensor_split(config.num_minibatches):
                old_obs, action, old_log_prob, advantage, target = (x[index] for x in batch)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy, value = agent(old_obs)
                value_loss, entropy = nn.functional.mse_loss(value, target), policy.entropy().mean()
                loss = clipped_surrogate(policy.log_prob(action), old_log_prob, advantage, config.clip_coef)
                loss = loss + 0.5 * value_loss - config.ent_coef * entropy
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {step}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        # Evaluate now and then, and stop when solved, in these episodes and in 100 others.
        if step % config.eval_frequency < rollout_size or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, 100, config.seed + step)
            report(f"step {step:6}  return {returns.mean():6.1f}  value_loss {value_loss:.3f}  "
                   f"entropy {entropy:.2f}")
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, f"{config.save}.tmp")
                os.replace(f"{config.save}.tmp", config.save)
            threshold = envs.spec.reward_threshold
            if threshold is not None and returns.mean() - returns.std() >= threshold:
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 1_000)
                if returns.mean() - returns.std() >= threshold:
                    break

    envs.close()
    print(f"ppo.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {step:,} steps")
    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="PPO. Every setting of Config is a flag.")
    for field in fields(Config):
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    main(Config(**vars(parser.parse_args())))
