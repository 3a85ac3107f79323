"""DQN (Mnih et al. 2015, doi:10.1038/nature14236): learn Q(s, a) from replayed transitions, act greedily.

`python dqn.py` solves CartPole-v1: 500.0 of 500 after 32,000 to 83,200 steps, ten seeds of ten.
env.step -> ReplayBuffer.add -> ReplayBuffer.sample -> td_loss -> Adam -> target network

DQN's policies come and go: training ends while one is there (`eval_frequency`). What helps them to stay: a
large epsilon of Adam's, or else steps of full size on the noise that is left when errors are small undo what
was learned; rewards scaled for the Huber loss; observations weighed by their bounds. README.md, "Break it".
"""
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6"]
# ///
import argparse
import copy
import os
import time
from collections import namedtuple
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn

@dataclass(frozen=True)
class Config:
    """Every setting, each also a flag: `--gamma 0.9 --double`. ValueError if one is out of range."""
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:id; flat Box observations, Discrete actions
    seed: int = 1  # of weights, environments, exploration and replay
    device: str = "cpu"  # or cuda
    total_timesteps: int = 160_000  # environment steps, all environments together, unless solved before
    num_envs: int = 32  # environments side by side
    hidden_size: int = 128  # units in each of the two hidden layers
    learning_rate: float = 2e-3  # of Adam, annealed linearly to zero
    gamma: float = 0.99  # discount factor, per step
    reward_scale: float = 0.1  # times the reward, for learning only
    buffer_size: int = 20_000  # transitions kept for replay
    batch_size: int = 256  # transitions per gradient step
    learning_starts: int = 1_000  # environment steps before the first gradient step
    train_frequency: int = 32  # environment steps per gradient step
    target_network_frequency: int = 1  # gradient steps per update of the target network
    tau: float = 0.1  # share of the way to the Q-network that an update goes; 1 copies it
    start_e: float = 1.0  # epsilon, the probability of a random action, at first
    end_e: float = 0.05  # epsilon after annealing
    exploration_fraction: float = 0.1  # share of total_timesteps over which epsilon is annealed
    double: bool = False  # Double DQN (van Hasselt et al. 2016)
    eval_frequency: int = 3_200  # steps between tests; one at reward_threshold ends training; 0: none
    eval_episodes: int = 100  # greedy episodes of such a test

    def __post_init__(self):
        free = "seed", "learning_starts", "eval_frequency"
        shares = "gamma", "tau", "start_e", "end_e", "exploration_fraction"
        for name, value in vars(self).items():
            low = 1 if type(getattr(Config, name)) is int and name not in free else 0
            high = 1 if name in shares else np.inf
            if not isinstance(value, str) and not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")

class QNetwork(nn.Sequential):
    """Q(s, .), for all actions: (B, obs_dim) -> (B, num_actions). ValueError if the spaces don't fit."""
    def __init__(self, config):
        env = gym.make(config.env_id)
        obs_space, action_space, hidden_size = env.observation_space, env.action_space, config.hidden_size
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(f"{config.env_id} has observations {obs_space}, expected a flat Box")
        if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
            raise ValueError(f"{config.env_id} has actions {action_space}, expected Discrete from 0")
        torch.set_num_threads(1)  # networks of this size are faster on one core
        torch.manual_seed(config.seed)
        super().__init__(
            nn.Linear(obs_space.shape[0], hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, int(action_space.n)))
        bound = np.maximum(np.maximum(-obs_space.low, obs_space.high), 0.01)  # that of CartPole's x is 4.8
        with torch.no_grad():
            self[0].weight *= torch.as_tensor(np.where(bound < 1e6, 4.8 / bound, 1), dtype=torch.float32)
        self.steps = 0  # of training
        self.to(config.device)

    @torch.inference_mode()
    def act(self, obs):
        """Greedy actions (B,) int64 for numpy observations (B, obs_dim)."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self[0].weight.device)
        return self(obs).argmax(1).cpu().numpy()

Batch = namedtuple("Batch", "obs action reward next_obs terminated")  # (B, obs_dim) obs, the others (B,)

class ReplayBuffer:
    """The latest `size` transitions, in preallocated arrays."""
    def __init__(self, size, obs_dim):
        self.size, self.added = size, 0
        obs, next_obs = np.zeros((2, size, obs_dim), np.float32)
        action, reward, terminated = np.zeros(size, int), np.zeros(size, np.float32), np.zeros(size, bool)
        self.arrays = Batch(obs, action, reward, next_obs, terminated)

    def add(self, *transitions):
        """Store N transitions, the five arrays of a Batch, over the oldest ones when full."""
        index = (self.added + np.arange(len(transitions[0]))) % self.size
        for array, values in zip(self.arrays, transitions):
            array[index] = values
        self.added += len(index)

    def sample(self, batch_size, rng, device="cpu"):
        """Draw a Batch of tensors, uniformly and with replacement."""
        index = rng.integers(min(self.added, self.size), size=batch_size)
        return Batch(*(torch.as_tensor(array[index], device=device) for array in self.arrays))

def td_loss(q_network, target_network, batch, gamma, double=False):
    """Huber loss of Q(s, a) against r + gamma (1 - terminated) max_a' Q_target(s', a'), a scalar.
    With `double`, Q chooses a' and Q_target rates it. Truncation does not cut the bootstrap."""
    with torch.no_grad():
        next_q = target_network(batch.next_obs)  # (B, num_actions)
        next_action = (q_network(batch.next_obs) if double else next_q).argmax(1, keepdim=True)
        next_value = next_q.gather(1, next_action).squeeze(1)  # (B,)
        target = batch.reward + gamma * (1 - batch.terminated.float()) * next_value
    q_value = q_network(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # (B,)
    return nn.functional.smooth_l1_loss(q_value, target)

def print_progress(row):
    """Print a dict of figures on one line."""
    print(*(f"{k} {v:,}" if type(v) is int else f"{k} {v:.3g}" for k, v in row.items()), sep="  ", flush=True)

def train(config, report=print_progress, agent=None):
    """Train `agent` (None: a new one) and return it; `report` gets a dict of figures about once a second.
    FloatingPointError if an observation or the loss stops being finite."""
    agent = agent or QNetwork(config)
    target_network = copy.deepcopy(agent).requires_grad_(False)
    optimizer = torch.optim.Adam(agent.parameters(), eps=1e-3, fused=True)  # with 1e-8 it would step on noise
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(config.env_id, num_envs=config.num_envs))
    goal = getattr(envs.spec, "reward_threshold", None) if config.eval_frequency else None
    rng = np.random.default_rng(config.seed)
    obs, _ = envs.reset(seed=config.seed)
    buffer = ReplayBuffer(config.buffer_size, obs.shape[1])
    done, updates, loss = np.zeros(config.num_envs, bool), 0, torch.tensor(torch.nan)
    start, reported = time.perf_counter(), 0

    for step in range(config.num_envs, config.total_timesteps + config.num_envs, config.num_envs):
        progress = step / config.total_timesteps
        epsilon = np.interp(progress, [0, config.exploration_fraction], [config.start_e, config.end_e])
        random_action = rng.integers(envs.single_action_space.n, size=config.num_envs)
        action = np.where(rng.random(config.num_envs) < epsilon, random_action, agent.act(obs))
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        if not np.isfinite(next_obs).all():
            raise FloatingPointError(f"an observation is not finite at step {step}")

        stored = ~done  # the step after the last one of an episode only resets it
        transitions = obs, action, config.reward_scale * reward, next_obs, terminated
        buffer.add(*(array[stored] for array in transitions))
        obs, done = next_obs, terminated | truncated
        agent.steps = step

        optimizer.param_groups[0]["lr"] = config.learning_rate * max(0, 1 - progress)
        while updates < (step - config.learning_starts) // config.train_frequency:
            batch = buffer.sample(config.batch_size, rng, config.device)
            loss = td_loss(agent, target_network, batch, config.gamma, config.double)
            optimizer.zero_grad()
            loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the TD loss is not finite at step {step}")
            optimizer.step()
            updates += 1
            if updates % config.target_network_frequency == 0:
                for target_weight, weight in zip(target_network.parameters(), agent.parameters()):
                    target_weight.data.lerp_(weight.data, config.tau)

        solved = goal is not None and step % config.eval_frequency < config.num_envs
        solved = solved and np.mean(list(envs.return_queue)[-config.num_envs:] or np.nan) >= goal
        if solved:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + 20_000 + step)
            solved = returns.mean() - returns.std() >= goal  # the mean alone lets one failure in twenty pass
        seconds = time.perf_counter() - start
        if seconds > reported + 1 or solved or step >= config.total_timesteps:
            reported, mean_return = seconds, float(np.mean(envs.return_queue or np.nan))
            report({"step": step, "episodes": int(envs.episode_count), "return": mean_return,
                    "td_loss": loss.item(), "epsilon": float(epsilon), "seconds": seconds})
        if solved:
            break
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
    parser = argparse.ArgumentParser("dqn.py", argparse.SUPPRESS, argument_default=argparse.SUPPRESS)
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
        agent = QNetwork(config)
        if load:
            agent.load_state_dict(saved[f"dqn.py {config.env_id}"])  # another script or task: another key
            agent.steps = int(saved["steps"])
        if save and (os.path.isdir(save) or not os.access((os.path.dirname(save) or ".") + "/", os.W_OK)):
            raise ValueError(f"{save}: cannot be written, expected a file in an existing folder")
    except Exception as error:
        parser.error((f"{load}: no checkpoint of dqn.py: " if load else "") + str(error).split("\n")[0])
    try:
        train(config, agent=agent) if not load else None
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        parser.exit(1, f"dqn.py: error: {error}\n")
    if save:
        try:
            weights = {f"dqn.py {config.env_id}": agent.state_dict()}
            torch.save({"config": vars(config), "steps": agent.steps, **weights}, f"{save}.tmp")
            os.replace(f"{save}.tmp", save)  # at no moment is there half a file
        except Exception as error:  # a full disk, say
            parser.exit(1, f"dqn.py: error: {save}: not written: {str(error).splitlines()[0]}\n")
    if interrupted:
        parser.exit(130)
    returns = evaluate(agent, config.env_id, 100, config.seed + 10_000)
    print(f"dqn.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {agent.steps:,} steps, "
          f"{time.perf_counter() - start:.1f} s")

if __name__ == "__main__":
    main()
