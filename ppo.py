"""PPO (Schulman et al. 2017, arXiv:1707.06347): policy gradients, kept close to the policy that saw the data.

`python ppo.py` solves CartPole-v1: 500.0 of 500 after 29,696 to 50,176 steps, ten seeds of ten.
env.step -> obs, action, reward (T, N) -> gae -> clipped_surrogate + value loss - entropy -> Adam
"""
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6"]
# ///
import argparse
import os
import time
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

@dataclass(frozen=True)
class Config:
    """Every setting, each also a flag: `--env-id Pendulum-v1 --gamma 0.9`. ValueError if out of range."""
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:id; flat Box observations, Discrete or Box actions
    seed: int = 1  # of weights, environments, actions and minibatches
    device: str = "cpu"  # or cuda
    total_timesteps: int = 65_536  # environment steps, all environments together, unless solved before
    num_envs: int = 32  # N, environments side by side
    num_steps: int = 32  # T, steps of each environment between updates
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 3e-3  # of Adam
    end_learning_rate: float = 0.0  # share of it to which it is annealed linearly; 1: constant
    max_grad_norm: float = 0.5  # longer gradients are shortened to this
    gamma: float = 0.99  # discount factor, per step
    gae_lambda: float = 0.95  # 0: one-step advantages, 1: whole returns
    update_epochs: int = 10  # passes over each rollout
    num_minibatches: int = 2  # gradient steps per pass
    clip_coef: float = 0.2  # the probability ratio gains nothing further than this from 1
    vf_coef: float = 0.5  # weight of the value loss
    ent_coef: float = 0.0  # weight of the entropy bonus
    reward_scale: float = 0.1  # times the reward, for learning only
    eval_frequency: int = 1_024  # steps between tests; one at reward_threshold ends training; 0: none
    eval_episodes: int = 100  # greedy episodes of such a test

    def __post_init__(self):
        for name, value in vars(self).items():
            low = 1 if type(getattr(Config, name)) is int and name not in ("seed", "eval_frequency") else 0
            high = 1 if name in ("end_learning_rate", "gamma", "gae_lambda") else np.inf
            high = self.num_envs * (self.num_steps // 2) if name == "num_minibatches" else high
            if not isinstance(value, str) and not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")

def mlp(inputs, hidden, outputs, gain):
    """Two tanh layers and a linear one, orthogonally initialised, the last one with `gain`."""
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
                        nn.Linear(hidden, outputs))
    for layer, layer_gain in zip(net[::2], (2**0.5, 2**0.5, gain)):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return net

class ActorCritic(nn.Module):
    """The policy pi(. | s) and the value V(s). ValueError if the environment's spaces don't fit."""
    def __init__(self, config):
        super().__init__()
        env = gym.make(config.env_id)
        obs_space, action_space, hidden_size = env.observation_space, env.action_space, config.hidden_size
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(f"{config.env_id} has observations {obs_space}, expected a flat Box")
        flat = isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1
        self.discrete = isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0
        if not flat and not self.discrete:
            raise ValueError(f"{config.env_id} has actions {action_space}, expected Discrete or a flat Box")
        outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.low, self.high = (0, outputs - 1) if self.discrete else (action_space.low, action_space.high)
        torch.set_num_threads(1)  # networks of this size are faster on one core
        torch.manual_seed(config.seed)
        self.actor = mlp(obs_space.shape[0], hidden_size, outputs, gain=0.01)  # logits, or a Gaussian's mean
        self.critic = mlp(obs_space.shape[0], hidden_size, 1, gain=1.0)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(outputs))  # one for all states
        self.steps = 0  # of training
        self.to(config.device)

    def policy(self, obs):
        """pi(. | s), for obs (..., obs_dim)."""
        if self.discrete:
            return Categorical(logits=self.actor(obs), validate_args=False)
        gaussian = Normal(self.actor(obs), self.log_std.exp(), validate_args=False)
        return Independent(gaussian, 1, validate_args=False)

    @torch.inference_mode()
    def act(self, obs, greedy=True):
        """Actions (B,) or (B, act_dim) for numpy obs (B, obs_dim): greedy and clipped, or sampled."""
        policy = self.policy(torch.as_tensor(obs, dtype=torch.float32, device=self.actor[0].weight.device))
        action = (policy.mode if greedy else policy.sample()).cpu().numpy()
        return np.clip(action, self.low, self.high) if greedy else action

def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """Advantages sum_k (gamma lambda)^k delta_{t+k} (Schulman et al. 2016, eq. 16), everything (T, N), where
    delta = r + gamma (1 - terminated) V(s') - V(s). Truncation ends the sum, but not the bootstrap."""
    advantage = reward + gamma * (1 - terminated.to(reward)) * next_value - value
    decay = gamma * gae_lambda * (1 - done.to(reward))
    for t in reversed(range(len(reward) - 1)):
        advantage[t] += decay[t] * advantage[t + 1]
    return advantage

def clipped_surrogate(log_prob, old_log_prob, advantage, clip_coef):
    """-E[min(ratio A, clip(ratio, 1 - c, 1 + c) A)], ratio = pi / pi_old (PPO, eq. 7): (B,) to scalar."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage).mean()

def update(agent, optimizer, batch, config):
    """Learn from a rollout: obs and action (B, ...), their log_prob, advantage and value target (B,).
    Returns figures of the last minibatch. FloatingPointError if the loss or a gradient isn't finite."""
    for _ in range(config.update_epochs):
        index = torch.randperm(len(batch[0]), device=config.device)
        for minibatch in zip(*(x[index].tensor_split(config.num_minibatches) for x in batch)):
            obs, action, old_log_prob, advantage, target = minibatch
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
            policy = agent.policy(obs)
            log_prob, entropy = policy.log_prob(action), policy.entropy().mean()
            policy_loss = clipped_surrogate(log_prob, old_log_prob, advantage, config.clip_coef)
            value_loss = nn.functional.mse_loss(agent.critic(obs).squeeze(-1), target)
            loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
            if not torch.isfinite(loss.detach() + grad_norm):
                raise FloatingPointError("the PPO loss or its gradient is not finite")
            optimizer.step()
    ratio = (log_prob - old_log_prob).detach().exp()
    return {"policy_loss": policy_loss.item(), "value_loss": value_loss.item(), "entropy": entropy.item(),
            "approx_kl": (ratio - 1 - ratio.log()).mean().item(),
            "clip_fraction": ((ratio - 1).abs() > config.clip_coef).float().mean().item()}

def print_progress(row):
    """Print a dict of figures on one line."""
    print(*(f"{k} {v:,}" if type(v) is int else f"{k} {v:.3g}" for k, v in row.items()), sep="  ", flush=True)

def train(config, report=print_progress, agent=None):
    """Train `agent` (None: a new one) and return it; `report` gets a dict of figures about once a second.
    FloatingPointError if an observation or the loss stops being finite."""
    agent = agent or ActorCritic(config)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.Adam(agent.parameters(), eps=1e-5, fused=True)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(config.env_id, num_envs=config.num_envs))
    goal = getattr(envs.spec, "reward_threshold", None) if config.eval_frequency else None
    T, N = config.num_steps, config.num_envs
    obs, done = np.zeros((T + 1, *envs.observation_space.shape), np.float32), np.zeros((T + 1, N), bool)
    action = np.zeros((T, *envs.action_space.shape), envs.action_space.dtype)
    reward, terminated = np.zeros((T, N), np.float32), np.zeros((T, N), bool)
    obs[T], _ = envs.reset(seed=config.seed)
    step, solved, start, reported = 0, False, time.perf_counter(), 0

    while step < config.total_timesteps and not solved:
        rate = config.learning_rate * max(config.end_learning_rate, 1 - step / config.total_timesteps)
        optimizer.param_groups[0]["lr"] = rate
        obs[0], done[0] = obs[T], done[T]
        for t in range(T):
            action[t] = agent.act(obs[t], greedy=False)
            executed = np.clip(action[t], agent.low, agent.high)
            obs[t + 1], reward[t], terminated[t], truncated, _ = envs.step(executed)
            done[t + 1] = terminated[t] | truncated  # if so, obs[t + 1] is the last, step t + 1 a reset
            step += N
            if not np.isfinite(obs[t + 1]).all():
                raise FloatingPointError(f"an observation is not finite at step {step}")

        arrays = obs, action, reward * config.reward_scale, terminated, done[1:], ~done[:-1]
        s, a, r, end, last, stored = (torch.as_tensor(x, device=config.device) for x in arrays)
        with torch.no_grad():
            value, log_prob = agent.critic(s).squeeze(-1), agent.policy(s[:-1]).log_prob(a)
            advantage = gae(r, value[:-1], value[1:], end, last, config.gamma, config.gae_lambda)
        batch = [x[stored] for x in (s[:-1], a, log_prob, advantage, advantage + value[:-1])]

        figures = update(agent, optimizer, batch, config)
        agent.steps = step

        solved = goal is not None and step % config.eval_frequency < T * N
        solved = solved and np.mean(list(envs.return_queue)[-N:] or np.nan) >= goal
        if solved:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + 20_000 + step)
            solved = returns.mean() - returns.std() >= goal  # the mean alone lets one failure in twenty pass
        seconds = time.perf_counter() - start
        if seconds > reported + 1 or solved or step >= config.total_timesteps:
            reported, mean_return = seconds, float(np.mean(envs.return_queue or np.nan))
            report({"step": step, "episodes": int(envs.episode_count), "return": mean_return, **figures,
                    "seconds": seconds})
    envs.close()
    return agent

def evaluate(agent, env_id, episodes, seed):
    """Undiscounted returns (episodes,) of the greedy policy on fresh episodes, played side by side."""
    envs = gym.make_vec(env_id, num_envs=episodes)
    obs, _ = envs.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        obs, reward, terminated, truncated, _ = envs.step(agent.act(obs))
        returns += reward * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns

def main(argv=None):
    """Train or load, save, evaluate on 100 episodes. Exit status 2: bad input, 1: not finite, 130: Ctrl-C."""
    parser = argparse.ArgumentParser("ppo.py", argparse.SUPPRESS, argument_default=argparse.SUPPRESS)
    for field in fields(Config):
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type}
        parser.add_argument("--" + field.name.replace("_", "-"), help=f"default: {field.default}", **kind)
    parser.add_argument("--save", default="", help="file for weights and config, written when training ends")
    parser.add_argument("--load", default="", help="such a file: evaluate it, train nothing")
    flags, start, interrupted = vars(parser.parse_args(argv)), time.perf_counter(), False
    save, load = flags.pop("save"), flags.pop("load")
    try:
        saved = torch.load(load, "cpu", weights_only=True) if load else {"config": {}}
        config = Config(**{**saved["config"], **flags})
        agent = ActorCritic(config)
        if load:
            agent.load_state_dict(saved[f"ppo.py {config.env_id}"])  # another script or task: another key
            agent.steps = int(saved["steps"])
        if save and (os.path.isdir(save) or not os.access((os.path.dirname(save) or ".") + "/", os.W_OK)):
            raise ValueError(f"{save}: cannot be written, expected a file in an existing folder")
    except Exception as error:
        parser.error((f"{load}: no checkpoint of ppo.py: " if load else "") + str(error).split("\n")[0])
    try:
        train(config, agent=agent) if not load else None
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        parser.exit(1, f"ppo.py: error: {error}\n")
    if save:
        try:
            weights = {f"ppo.py {config.env_id}": agent.state_dict()}
            torch.save({"config": vars(config), "steps": agent.steps, **weights}, f"{save}.tmp")
            os.replace(f"{save}.tmp", save)  # at no moment is there half a file
        except Exception as error:  # a full disk, say
            parser.exit(1, f"ppo.py: error: {save}: not written: {str(error).splitlines()[0]}\n")
    if interrupted:
        parser.exit(130)
    returns = evaluate(agent, config.env_id, 100, config.seed + 10_000)
    print(f"ppo.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {agent.steps:,} steps, "
          f"{time.perf_counter() - start:.1f} s")

if __name__ == "__main__":
    main()
