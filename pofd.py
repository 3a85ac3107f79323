"""POfD, policy optimization from demonstrations (Kang et al. 2018, ICML): PPO, paid to imitate.

`python pofd.py` swings up a sparse pendulum in a minute. It prints a row for each evaluation.
env.step -> make_batch, imitation_reward -> gae -> clipped_surrogate, discriminator_loss -> Adam"""
# SPDX-License-Identifier: MIT-0
import argparse
import os
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Config:  # every setting is also a flag: `python pofd.py --gamma 0.9`
    env_id: str = "demos.pendulums:InvertedPendulumSwingupPyBulletSparseEnv-v0"  # Gymnasium id
    seed: int = 1  # seeds weights, environments, actions and minibatches
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 409_600  # environment steps, unless solved before
    eval_frequency: int = 16_384  # environment steps between evaluations
    eval_episodes: int = 20  # greedy episodes per evaluation
    num_envs: int = 8  # N, environments side by side
    num_steps: int = 256  # T, steps of each environment per rollout, from a fresh start
    hidden_size: int = 64  # units in each hidden layer
    learning_rate: float = 1e-3  # step size of Adam
    gamma: float = 0.995  # discount factor
    reward_scale: float = 0.1  # environment rewards are multiplied by this
    update_epochs: int = 10  # passes over each rollout
    num_minibatches: int = 8  # gradient steps per pass, on at least two rows each
    demo: str = os.path.dirname(os.path.realpath(__file__)) + "/demos/{}.npz"  # .npz; {} is the id
    reward_lambda: float = 0.1  # weight of the imitation reward; 0 is PPO alone
    discriminator_learning_rate: float = 1e-3  # 0: D stays near 0.5 for all pairs


class ActorCritic(nn.Module):
    """The policy pi(a|s), a Gaussian, and the value V(s)."""
    def __init__(self, obs_space, action_space, hidden_size):
        super().__init__()
        self.action_space = action_space
        for box in obs_space, action_space:
            assert isinstance(box, gym.spaces.Box) and len(box.shape) == 1, f"not flat Box: {box}"
        assert action_space.is_bounded(), f"expected bounds, got {action_space}"
        inputs, outputs = obs_space.shape[0], action_space.shape[0]
        self.actor = nn.Sequential(nn.Linear(inputs, hidden_size), nn.Tanh(),
            nn.Linear(hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, outputs))
        self.critic = nn.Sequential(nn.Linear(inputs, hidden_size), nn.Tanh(),
            nn.Linear(hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))
        self.log_std = nn.Parameter(torch.zeros(outputs))  # of the Gaussian, alike in all states

    def policy(self, obs):
        """The distribution pi(.|s) for observations (..., obs_dim)."""
        return torch.distributions.Normal(self.actor(obs), self.log_std.exp())

    def to_env(self, action):
        """NumPy actions for env.step: [-1, 1] is scaled to the bounds, in float64."""
        low, high = self.action_space.low.astype(float), self.action_space.high.astype(float)
        action = np.clip(low / 2 + high / 2 + (high / 2 - low / 2) * action, low, high)
        return action.astype(self.action_space.dtype)  # an integer is cut towards zero

    @torch.no_grad()
    def act(self, obs):
        """Greedy actions (B, act_dim) for NumPy observations (B, obs_dim)."""
        return self.to_env(self.policy(torch.as_tensor(obs, dtype=torch.float32)).mode.numpy())


class Discriminator(nn.Sequential):
    """The logit (...,) of D(s, a): is it the agent's? Columns that hardly vary are not scaled."""
    def __init__(self, demo, hidden_size):
        super().__init__(nn.Linear(len(demo.T), hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))
        self.mean, self.std = demo.mean(0), torch.where(demo.std(0) > 1e-3, demo.std(0), 1.0)

    def forward(self, pair):
        return super().forward(((pair - self.mean) / self.std).clamp(-10, 10)).squeeze(-1)


def discriminator_loss(agent_logits, demo_logits):
    """-E_agent[log D] - E_demo[log(1 - D)], D = sigmoid(logits): agent = 1, demonstration = 0."""
    return -nn.LogSigmoid()(agent_logits).mean() - nn.LogSigmoid()(-demo_logits).mean()


def imitation_reward(logits):
    """-log D(s, a): large where D takes the agent for the demonstrator. No gradient flows back."""
    return -nn.LogSigmoid()(logits.detach())


def load_demonstrations(path, obs_space, action_space):
    """Pairs (n, obs_dim + act_dim): the "observations" and executed "actions" of an .npz file."""
    assert str(path).endswith(".npz"), f"expected an .npz file, got {path}"
    file, spaces = np.load(path), {"observations": obs_space, "actions": action_space}
    for key, space in spaces.items():
        assert file[key].shape[1:] == space.shape, f"{path}: expected {key} n x {space.shape}"
        assert len(file[key]) and np.isfinite(file[key]).all(), f"{path}: {key} empty, nan or inf"
    return torch.Tensor(np.hstack([file[key].clip(x.low, x.high) for key, x in spaces.items()]))


def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """Advantages sum_k (gamma lambda)^k delta_{t+k} until done or T (PPO's eq. 11), all (T, N)."""
    advantage = reward + gamma * (1 - terminated) * next_value - value  # delta
    for t in reversed(range(len(reward) - 1)):  # delta itself at the last step
        advantage[t] += gamma * gae_lambda * (1 - done[t]) * advantage[t + 1]
    return advantage


@torch.no_grad()
def make_batch(rollout, agent, discriminator, config):
    """Turn T lists of tensors (N, ...) into what is learned from, tensors (B, ...)."""
    obs, action, reward, next_obs, terminated, done, reset = map(torch.stack, zip(*rollout))
    log_prob = agent.policy(obs).log_prob(action).sum(-1)  # of the policy that acted
    value, next_value = agent.critic(obs).squeeze(-1), agent.critic(next_obs).squeeze(-1)
    pair = torch.cat([obs, obs.new_tensor(agent.to_env(action.numpy()))], -1)  # what D sees
    reward += config.reward_lambda * imitation_reward(discriminator(pair))
    advantage = gae(reward, value, next_value, terminated, done, config.gamma, gae_lambda=0.95)
    return [x[reset == 0] for x in (obs, action, pair, log_prob, advantage, advantage + value)]


def clipped_surrogate(log_prob, old_log_prob, advantage, clip_coef):
    """-E[min(ratio A, clip(ratio, 1 - c, 1 + c) A)] with ratio = pi / pi_old (PPO's eq. 7)."""
    ratio = (log_prob - old_log_prob).exp()
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return -torch.min(ratio * advantage, clipped_ratio * advantage).mean()


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
    np.random.seed(config.seed)  # for environments that draw from it
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are faster on one core
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs)
    assert envs.metadata.get("autoreset_mode") == gym.vector.AutoresetMode.NEXT_STEP, "NEXT_STEP"
    spaces = envs.single_observation_space, envs.single_action_space
    agent = ActorCritic(*spaces, config.hidden_size)
    demo = load_demonstrations(str(config.demo).replace("{}", envs.spec.id), *spaces)
    d_net = Discriminator(demo, config.hidden_size)
    adam = torch.optim.Adam(agent.parameters(), config.learning_rate, fused=True)  # faster
    adam.add_param_group({"params": d_net.parameters(), "lr": config.discriminator_learning_rate})
    threshold = np.inf if envs.spec.reward_threshold is None else envs.spec.reward_threshold
    value_loss = entropy = d_loss = torch.tensor(torch.nan)  # before the first step
    rollout_size = config.num_envs * config.num_steps

    for step in range(0, config.total_timesteps + rollout_size, rollout_size):
        # Evaluate at the start, whenever eval_frequency steps have passed, and at the end.
        if step % config.eval_frequency < rollout_size or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + step)
            report({"step": step, "return": returns.mean().item(), "value_loss": value_loss.item(),
                    "entropy": entropy.item(), "discriminator_loss": d_loss.item()})
            if config.save:
                torch.save({"config": vars(config), "weights": agent.state_dict()}, config.save)
            if np.mean(returns >= threshold) >= 0.99:  # then 100 other episodes decide
                returns = evaluate(agent, config.env_id, 100, config.seed + step + 10**6)
            solved = np.mean(returns >= threshold) >= 0.99
            if solved or step >= config.total_timesteps:
                envs.close()
                verdict = "solved" if solved else "not solved" if threshold < np.inf else "ended"
                print(f"{verdict} in {step} steps: mean return {returns.mean():.4g}")
                return agent

        # Act and store, always from fresh starts: long episodes would bring few of them.
        obs = np.array(envs.reset(seed=config.seed + step)[0])
        rollout, done = [], np.zeros(config.num_envs, bool)
        for _ in range(config.num_steps):
            action = agent.policy(torch.as_tensor(obs, dtype=torch.float32)).sample().numpy()
            next_obs, reward, terminated, truncated, _ = envs.step(agent.to_env(action))
            reset, done = done, np.logical_or(terminated, truncated)  # reset: done the step before
            arrays = obs, action, config.reward_scale * reward, next_obs, terminated, done, reset
            rollout.append([torch.tensor(array, dtype=torch.float32) for array in arrays])
            obs = np.array(next_obs)  # a copy: some environments reuse their arrays

        batch = make_batch(rollout, agent, d_net, config)
        for _ in range(config.update_epochs):  # Learn, and shorten a long gradient of the policy.
            for index in torch.randperm(len(batch[0])).chunk(config.num_minibatches):
                mb_obs, action, pair, old_log_prob, advantage, target = (x[index] for x in batch)
                advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
                pi = agent.policy(mb_obs)
                log_prob, entropy = pi.log_prob(action).sum(-1), pi.entropy().sum(-1).mean()
                pi_loss = clipped_surrogate(log_prob, old_log_prob, advantage, clip_coef=0.2)
                value_loss = nn.functional.mse_loss(agent.critic(mb_obs).squeeze(-1), target)
                demo_pair = demo[torch.randint(len(demo), (len(index),))]
                d_loss = discriminator_loss(d_net(pair), d_net(demo_pair))
                adam.zero_grad()
                (pi_loss + value_loss + d_loss).backward()
                nn.utils.clip_grad_norm_([*agent.actor.parameters(), agent.log_std], 0.5)
                adam.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="POfD. Every setting of Config is a flag.")
    for field in fields(Config):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=field.type, default=field.default, help="(%(default)s)")
    main(Config(**vars(parser.parse_args())))
