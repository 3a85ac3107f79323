"""POfD (Kang, Jie and Feng 2018, ICML): PPO that is also paid for looking like a few demonstrations.

`python pofd.py` solves a sparse pendulum in seconds. It prints a row per evaluation until it is solved.
env.step -> make_batch, imitation_reward -> gae -> clipped_surrogate + value loss - entropy -> Adam
                     and demonstrations -> discriminator_loss -> Adam
"""
# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6", "pybullet-arm64==3.2.8"]
# ///
import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Independent, Normal


@dataclass(frozen=True)
class Config:
    """Every setting. Each is also a flag: `python pofd.py --gamma 0.9`."""
    env_id: str = "demos.pendulums:InvertedPendulumPyBulletSparseEnv-v0"  # Gymnasium id, or module:id
    seed: int = 1  # seeds weights, environments, actions and minibatches
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 163_840  # environment steps, unless solved before
    eval_frequency: int = 16_384  # environment steps between evaluations
    num_envs: int = 16  # N, environments side by side
    max_episode_steps: int = 200  # training episodes are cut here, so that fresh starts keep coming
    num_steps: int = 64  # T, steps of each environment per rollout
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 1e-3  # step size of Adam
    gamma: float = 0.998  # discount factor
    gae_lambda: float = 0.95  # 0 gives one-step advantages, 1 gives whole returns
    update_epochs: int = 16  # passes over each rollout
    num_minibatches: int = 2  # gradient steps per pass
    clip_coef: float = 0.2  # a probability ratio further than this from 1 gains nothing
    ent_coef: float = 0.0  # weight of the entropy bonus
    demo: str = ""  # .npz of demonstrations; by default demos/<env id>.npz beside this file
    reward_scale: float = 0.1  # the environment's rewards are multiplied by this before learning
    reward_lambda: float = 0.1  # weight of the imitation reward
    discriminator_learning_rate: float = 1e-3  # step size of its Adam; 0 makes its reward a constant bonus


class ActorCritic(nn.Module):
    """The policy pi(a|s), a Gaussian, and the value V(s)."""
    def __init__(self, obs_space, action_space, hidden):
        super().__init__()
        assert len(obs_space.shape or ()) == 1, f"{obs_space}: expected flat observations"
        assert action_space.shape and action_space.is_bounded(), f"{action_space}: expected a Box with bounds"
        self.action_space, outputs = action_space, action_space.shape[0]
        self.actor, self.critic = (  # the mean of the Gaussian, the value
            nn.Sequential(nn.Linear(obs_space.shape[0], hidden), nn.Tanh(), nn.Linear(hidden, hidden),
                          nn.Tanh(), nn.Linear(hidden, size)) for size in (outputs, 1))
        self.register_buffer("scale", torch.ones(2, obs_space.shape[0]))  # the demonstrations' mean and std
        self.log_std = nn.Parameter(torch.zeros(outputs))  # of the Gaussian, the same in all states

    def forward(self, obs):
        """The distribution pi(.|s) and the value V(s) (...,) for observations (..., obs_dim)."""
        obs = (torch.as_tensor(obs, dtype=torch.float32) - self.scale[0]) / self.scale[1]
        policy = Independent(Normal(self.actor(obs), self.log_std.exp()), 1)
        return policy, self.critic(obs).squeeze(-1)

    def execute(self, action):
        """What env.step takes for the policy's action. [-1, 1] is scaled to the bounds."""
        low, high = self.action_space.low, self.action_space.high
        return np.clip((low + high + (high - low) * action) / 2, low, high).astype(low.dtype)

    def act(self, obs):
        """Greedy actions (B, act_dim) for NumPy observations (B, obs_dim)."""
        return self.execute(self(obs)[0].mode.detach().numpy())


def discriminator_loss(agent_logits, demo_logits):
    """-E_agent[log D] - E_demo[log(1 - D)], D = sigmoid(logits): agent = 1, demonstration = 0."""
    return nn.functional.softplus(-agent_logits).mean() + nn.functional.softplus(demo_logits).mean()


def imitation_reward(logits):
    """-log D(s, a): large where D takes the agent for the demonstrator. No gradient flows back."""
    return -nn.functional.logsigmoid(logits.detach())


def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """Advantages sum_k (gamma lambda)^k delta_{t+k} (Schulman et al. 2016, eq. 16), everything (T, N), where
    delta = r + gamma (1 - terminated) V(s') - V(s). Truncation ends the sum, but not the bootstrap."""
    advantage = reward + gamma * (1 - terminated.to(reward)) * next_value - value
    for t in reversed(range(len(reward) - 1)):
        advantage[t] += gamma * gae_lambda * (1 - done[t].to(reward)) * advantage[t + 1]
    return advantage


@torch.no_grad()
def make_batch(rollout, agent, discriminator, config):
    """From T tuples of arrays (N, ...): pairs for D, obs, action, log_prob, advantage, target (B, ...)."""
    arrays = (torch.as_tensor(np.array(array, np.float32)) for array in zip(*rollout))
    pairs, obs, action, reward, next_obs, terminated, done, reset = arrays  # each (T, N, ...)
    (policy, value), (_, next_value) = agent(obs), agent(next_obs)
    reward = config.reward_scale * reward + config.reward_lambda * imitation_reward(discriminator(pairs))
    advantage = gae(reward, value, next_value, terminated, done, config.gamma, config.gae_lambda)
    batch = pairs, obs, action, policy.log_prob(action), advantage, advantage + value
    return [x[reset == 0] for x in batch]


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
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs, max_episode_steps=config.max_episode_steps)
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP, "expected NEXT_STEP resets"
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, config.hidden_size)
    obs, _ = envs.reset(seed=config.seed)
    path = config.demo or Path(__file__).with_name("demos") / (config.env_id.split(":")[-1] + ".npz")
    spaces = {"observations": envs.single_observation_space, "actions": envs.single_action_space}
    with np.load(path) as file:
        demo = [file[key] for key in spaces]
    for array, (key, space) in zip(demo, spaces.items()):
        if array.shape != (len(demo[0]), *space.shape):
            raise ValueError(f"{path}: {key} {array.shape}, expected {(len(demo[0]), *space.shape)}")
    demo = np.hstack([demo[0], np.clip(demo[1], agent.action_space.low, agent.action_space.high)])
    mean, std = demo.mean(0), demo.std(0) + 1e-8  # of observations and actions, for agent and D
    agent.scale[:] = torch.as_tensor(np.array([mean, std])[:, :obs.shape[1]])
    demo = torch.as_tensor((demo - mean) / std, dtype=torch.float32)
    discriminator = nn.Sequential(nn.Linear(len(mean), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
                                  nn.Linear(64, 1), nn.Flatten(-2))  # the logit of D(s, a)
    optimizer = torch.optim.Adam([
        {"params": agent.parameters(), "lr": config.learning_rate},
        {"params": discriminator.parameters(), "lr": config.discriminator_learning_rate}], fused=True)
    done, rollout_size = np.zeros(config.num_envs, bool), config.num_envs * config.num_steps

    for step in range(rollout_size, config.total_timesteps + rollout_size, rollout_size):
        # Act and store. The step after the end of an episode only resets it; make_batch leaves it out.
        rollout = []
        for _ in range(config.num_steps):
            action = agent(obs)[0].sample().numpy()
            executed = agent.execute(action)
            next_obs, reward, terminated, truncated, _ = envs.step(executed)
            pair = (np.hstack([obs, executed]) - mean) / std
            rollout.append((pair, obs, action, reward, next_obs, terminated, terminated | truncated, done))
            obs, done = next_obs, terminated | truncated

        # Learn. The discriminator's reward is read before it learns from this rollout.
        batch = make_batch(rollout, agent, discriminator, config)
        for _ in range(config.update_epochs):
            for index in torch.randperm(len(batch[0])).tensor_split(config.num_minibatches):
                pairs, old_obs, action, old_log_prob, advantage, target = (x[index] for x in batch)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy, value = agent(old_obs)
                value_loss, entropy = nn.functional.mse_loss(value, target), policy.entropy().mean()
                loss = clipped_surrogate(policy.log_prob(action), old_log_prob, advantage, config.clip_coef)
                loss = loss + 0.5 * value_loss - config.ent_coef * entropy
                demo_pairs = demo[torch.randint(len(demo), (len(index),))]
                d_loss = discriminator_loss(discriminator(pairs), discriminator(demo_pairs))
                if not torch.isfinite(loss + d_loss):
                    raise FloatingPointError(f"the losses are {loss} and {d_loss} at step {step}")
                optimizer.zero_grad()
                (loss + d_loss).backward()  # no weight is in both
                optimizer.step()

        # Evaluate now and then, and stop when solved, in these episodes and in 100 others.
        if step % config.eval_frequency < rollout_size or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, 40, config.seed + step)
            report(f"step {step:6}  return {returns.mean():6.1f}  value_loss {value_loss:.3f}  "
                   f"entropy {entropy:.2f}  discriminator_loss {d_loss:.3f}")
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, f"{config.save}.tmp")
                os.replace(f"{config.save}.tmp", config.save)
            threshold = envs.spec.reward_threshold
            if threshold is not None and returns.mean() - returns.std() >= threshold:
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 1_000)
                if returns.mean() - returns.std() >= threshold:
                    break

    envs.close()
    print(f"pofd.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {step:,} steps")
    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="POfD. Every setting of Config is a flag.")
    for field in fields(Config):
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    main(Config(**vars(parser.parse_args())))
