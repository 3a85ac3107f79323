"""SAC (Haarnoja et al. 2018, arXiv:1812.05905): maximise return and entropy on replayed steps.

`python sac.py` solves a double pendulum in a minute. It prints a row for each greedy evaluation.
env.step -> ReplayBuffer.extend -> ReplayBuffer.sample -> three losses -> Adam -> target critics"""
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
class Config:  # every setting is also a flag: `python sac.py --gamma 0.9`
    env_id: str = "demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0"  # Gymnasium id
    seed: int = 1  # seeds weights, environments, actions and replay
    save: str = ""  # file for weights and settings, written at each evaluation
    total_timesteps: int = 150_000  # environment steps, unless solved before
    eval_frequency: int = 2_500  # environment steps between evaluations
    eval_episodes: int = 20  # greedy episodes per evaluation
    num_envs: int = 4  # environments side by side; each steps once per gradient step
    restart_frequency: int = 1_000  # environment steps between fresh starts of all environments
    hidden_size: int = 64  # units in each hidden layer
    learning_rate: float = 3e-3  # step size of Adam, for actor, critics and temperature
    gamma: float = 0.995  # discount factor
    reward_scale: float = 0.1  # rewards are multiplied by this before learning
    batch_size: int = 128  # transitions per gradient step
    tau: float = 0.1  # how far the target critics move per update; 1 copies the critics


class Actor(nn.Sequential):
    """pi(a|s), the tanh of a Gaussian: obs (B, obs_dim) to mean and log std (B, 2 act_dim)."""
    def __init__(self, obs_space, action_space, hidden_size):
        super().__init__()
        self.action_space = action_space
        for box in obs_space, action_space:
            assert isinstance(box, gym.spaces.Box) and len(box.shape) == 1, f"not flat Box: {box}"
        assert action_space.is_bounded(), f"expected bounds, got {action_space}"
        self.extend([nn.Linear(obs_space.shape[0], hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, 2 * action_space.shape[0])])

    def sample(self, obs):
        """Draw actions (B, act_dim), differentiably, and log pi of each (B,) (appendix C)."""
        mean, log_std = self(obs).chunk(2, -1)
        log_std, noise = log_std.clamp(-5, 2), torch.randn_like(mean)
        u = mean + log_std.exp() * noise  # this way gradients reach mean and log_std
        log_density = -(noise.square() + np.log(2 * np.pi)) / 2 - log_std  # of the Gaussian at u
        log_slope = 2 * (np.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return u.tanh(), (log_density - log_slope).sum(-1)

    def to_env(self, action):
        """NumPy actions for env.step: [-1, 1] is scaled to the bounds, in float64."""
        low, high = self.action_space.low.astype(float), self.action_space.high.astype(float)
        action = np.clip(low / 2 + high / 2 + (high / 2 - low / 2) * action, low, high)
        action = np.rint(action) if self.action_space.dtype.kind in "iu" else action  # integers
        return action.astype(self.action_space.dtype)

    @torch.no_grad()
    def act(self, obs):
        """Greedy actions (B, act_dim) for NumPy observations (B, obs_dim)."""
        mean, _ = self(torch.as_tensor(obs, dtype=torch.float32)).chunk(2, -1)
        return self.to_env(mean.tanh().numpy())


class Critics(nn.ModuleList):
    """Two networks Q(s, a): obs (B, obs_dim) and action (B, act_dim) to (2, B)."""
    def __init__(self, inputs, hidden_size):
        super().__init__(nn.Sequential(
            nn.Linear(inputs, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size),
            nn.ReLU(), nn.Linear(hidden_size, 1)) for _ in range(2))

    def forward(self, obs, action):
        return torch.stack([net(torch.cat([obs, action], -1)).squeeze(-1) for net in self])


class ReplayBuffer(list):
    """All transitions so far, each a tuple in the order of Batch."""
    def sample(self, batch_size):
        """Draw a Batch of tensors (B, ...), uniformly and with replacement."""
        rows = [self[i] for i in np.random.randint(len(self), size=batch_size)]
        return Batch(*(torch.tensor(np.array(column, np.float32)) for column in zip(*rows)))


def critic_loss(critics, target_critics, actor, batch, alpha, gamma):
    """Sum over both Q of E[(Q(s, a) - y)^2] (twice eq. 5), y = r + gamma (1 - terminated) V(s').
    V(s') = min Q_target(s', a') - alpha log pi(a'|s') is pi's soft value, from soft Q-learning."""
    with torch.no_grad():
        next_action, next_log_prob = actor.sample(batch.next_obs)
        next_value = target_critics(batch.next_obs, next_action).amin(0) - alpha * next_log_prob
        target = batch.reward + gamma * (1 - batch.terminated) * next_value
    return (critics(batch.obs, batch.action) - target).square().mean(1).sum()


def actor_loss(critics, obs, action, log_prob, alpha):
    """E[alpha log pi(a|s) - min Q(s, a)] for actions just drawn from pi (eq. 7)."""
    return (alpha * log_prob - critics(obs, action).amin(0)).mean()


def temperature_loss(log_alpha, log_prob, target_entropy):
    """-alpha E[log pi(a|s) + H], H = target_entropy: alpha falls while entropy > H (eq. 18)."""
    return -log_alpha.exp() * (log_prob.detach() + target_entropy).mean()


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
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    agent = Actor(obs_space, action_space, config.hidden_size)
    critics = Critics(obs_space.shape[0] + action_space.shape[0], config.hidden_size)
    target_critics = copy.deepcopy(critics)
    log_alpha = torch.tensor(0.1).log().requires_grad_()  # alpha, the temperature
    pi_params = [*agent.parameters(), log_alpha]
    adam = torch.optim.Adam([*critics.parameters(), *pi_params], config.learning_rate, fused=True)
    threshold = np.inf if envs.spec.reward_threshold is None else envs.spec.reward_threshold
    done = np.zeros(config.num_envs, bool)
    buffer, q_loss = ReplayBuffer(), torch.tensor(torch.nan)  # no loss yet

    for step in range(0, config.total_timesteps + config.num_envs, config.num_envs):
        # Evaluate at the start, whenever eval_frequency steps have passed, and at the end.
        if step % config.eval_frequency < config.num_envs or step >= config.total_timesteps:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + step)
            report({"step": step, "return": returns.mean().item(),
                    "critic_loss": q_loss.item(), "alpha": log_alpha.exp().item()})
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

        # Act: draw from the policy. All restart at times: long episodes would bring few starts.
        if step % config.restart_frequency < config.num_envs:
            obs, done[:] = np.array(envs.reset(seed=config.seed + step)[0]), False
        action = agent.sample(torch.as_tensor(obs, dtype=torch.float32))[0].detach().numpy()
        next_obs, reward, terminated, truncated, _ = envs.step(agent.to_env(action))

        # Store, except steps that only reset: here `done` is still that of the step before.
        transitions = obs, action, config.reward_scale * reward, next_obs, terminated
        buffer.extend(zip(*(array[~done] for array in transitions)))
        obs, done = np.array(next_obs), np.logical_or(terminated, truncated)  # both are copies

        # Learn, in one step of Adam for all. The target entropy is -act_dim.
        batch, alpha = buffer.sample(config.batch_size), log_alpha.detach().exp()
        q_loss = critic_loss(critics, target_critics, agent, batch, alpha, config.gamma)
        action, log_prob = agent.sample(batch.obs)
        pi_loss = actor_loss(critics, batch.obs, action, log_prob, alpha)
        alpha_loss = temperature_loss(log_alpha, log_prob, -action_space.shape[0])
        adam.zero_grad()
        q_loss.backward()
        (pi_loss + alpha_loss).backward(inputs=pi_params)  # and nothing for the critics
        adam.step()
        for target, source in zip(target_critics.parameters(), critics.parameters()):
            target.data.lerp_(source.data, config.tau)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SAC. Every setting of Config is a flag.")
    for field in fields(Config):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=field.type, default=field.default, help="(%(default)s)")
    main(Config(**vars(parser.parse_args())))
