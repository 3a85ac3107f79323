"""SAC (Haarnoja et al. 2018, arXiv:1812.05905): maximise return plus entropy, from replayed transitions.

`python sac.py` solves the sparse double pendulum: 970 to 998 of 1000, 16,000 to 40,000 steps (ten seeds).
env.step -> ReplayBuffer.add -> ReplayBuffer.sample -> critic_loss -> Adam -> target critic
                                                   -> actor_loss, temperature_loss -> Adam -> average actor

White noise hardly moves a cart at 60 steps a second, and what a slow drift costs would not be learned: the
noise is correlated in time. One step's action changes Q by less than the critic errs: actors are averaged.
"""
# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6", "pybullet==3.2.7"]
# ///
import argparse
import copy
import math
import os
import time
from collections import namedtuple
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import pybullet
import pybullet_data
import torch
from torch import nn
from torch.nn.functional import layer_norm, mse_loss, relu, softplus

@dataclass(frozen=True)
class Config:
    """Every setting, each also a flag: `--gamma 0.9 --plain`. ValueError if one is out of range."""
    env_id: str = "InvertedDoublePendulumPyBulletSparseEnv-v0"  # or module:id; flat Boxes
    seed: int = 1  # of weights, environments, actions and replay
    device: str = "cpu"  # or cuda
    total_timesteps: int = 40_000  # environment steps, all environments together, unless solved before
    num_envs: int = 16  # environments side by side
    hidden_size: int = 64  # units in each of the two hidden layers
    plain: bool = False  # the paper's critics, without LayerNorm
    learning_rate: float = 5e-3  # of Adam, for actor, critics and temperature
    end_learning_rate: float = 0.3  # share of it to which it is annealed linearly; 1: constant
    gamma: float = 0.995  # discount factor, per step
    reward_scale: float = 0.015  # times the reward, for learning only
    alpha: float = 0.003  # temperature at the start, the price of a nat of entropy in scaled reward
    buffer_size: int = 1_000_000  # transitions kept for replay
    batch_size: int = 256  # transitions per gradient step
    learning_starts: int = 1_000  # environment steps under uniformly random actions, before any learning
    train_frequency: int = 2  # environment steps per gradient step of the critics
    policy_frequency: int = 2  # gradient steps of the critics per step of actor and temperature
    tau: float = 0.1  # share of the way to the critics that the target critics go per gradient step
    averaging: float = 0.1  # the actor returned is the mean over about this share of its steps; 0: the last
    noise_correlation: float = 0.95  # of the noise in actions, from one step to the next; the paper has 0
    eval_frequency: int = 4_000  # steps between tests; one at reward_threshold ends training; 0: none
    eval_episodes: int = 60  # greedy episodes of such a test
    max_episode_steps: int = 200  # truncates training episodes, so that fresh starts keep coming; 0: doesn't

    def __post_init__(self):
        free = "seed", "learning_starts", "eval_frequency", "max_episode_steps"
        shares = "end_learning_rate", "gamma", "tau", "averaging", "noise_correlation"
        for name, value in vars(self).items():
            low = 1 if type(getattr(Config, name)) is int and name not in free else 0
            low = 1e-30 if name == "alpha" else low
            high = 1 if name in shares else np.inf
            if not isinstance(value, str) and not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")

class PendulumVectorEnv(gym.vector.VectorEnv):
    """N carts with one pole or two, 1 m apart in one Bullet world: a single physics step moves them all."""
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, double=False, sparse=True, max_episode_steps=np.inf):
        self.num_envs, self.double, self.sparse = num_envs, double, sparse
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (9 if double else 5,))
        self.single_action_space = gym.spaces.Box(-1, 1, (1,))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.joints = [0, 2, 4] if double else [0, 2]  # slider and hinges; the others are rigid
        self.steps, self.done, self.bodies = np.zeros(num_envs, int), np.ones(num_envs, bool), []
        self.world = {"physicsClientId": pybullet.connect(pybullet.DIRECT)}
        pybullet.setGravity(0, 0, -9.8, **self.world)
        pybullet.setPhysicsEngineParameter(0.0165, numSolverIterations=5, numSubSteps=1, **self.world)
        model = f"{pybullet_data.getDataPath()}/mjcf/inverted_{'double_' * double}pendulum.xml"
        colored = pybullet.URDF_GOOGLEY_UNDEFINED_COLORS
        for i in range(num_envs):
            *scenery, body = pybullet.loadMJCF(model, flags=colored, **self.world)
            for surplus in scenery:
                pybullet.removeBody(surplus, **self.world)
            pybullet.resetBasePositionAndOrientation(body, (0, i, 0), (0, 0, 0, 1), **self.world)
            for joint in self.joints:  # default motors off
                pybullet.setJointMotorControl2(body, joint, pybullet.POSITION_CONTROL, force=0, **self.world)
            self.bodies.append(body)

    def reset(self, *, seed=None, options=None):
        """Start all anew, or those of the mask `options["reset_mask"]`."""
        super().reset(seed=seed)
        fresh = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        return self.observe(fresh)[0], {}

    def step(self, actions):
        """Move every pendulum on by 16.5 ms; one that was done starts anew instead, ignoring its action."""
        for body, action in zip(self.bodies, actions[:, 0].astype(float).clip(-1, 1)):
            torque = action * (200 if self.double else 100)
            pybullet.setJointMotorControl2(body, 0, pybullet.TORQUE_CONTROL, force=torque, **self.world)
        pybullet.stepSimulation(**self.world)
        self.steps += 1
        return self.observe(self.done)

    def observe(self, fresh):
        """What `step` returns, once those of the mask `fresh` have been started anew."""
        self.steps[fresh] = 0
        for i in np.flatnonzero(fresh):
            start = 0, *self.np_random.uniform(-0.1, 0.1, len(self.joints) - 1)
            for joint, position in zip(self.joints, start):
                pybullet.resetJointState(self.bodies[i], joint, position, 0, **self.world)

        states = [pybullet.getJointStates(body, self.joints, **self.world) for body in self.bodies]
        state = np.array([[joint[:2] for joint in joints] for joints in states])  # (N, joints, 2)
        last = self.joints[-1] + 1
        tip = np.array([pybullet.getLinkState(body, last, **self.world)[0] for body in self.bodies])
        angle, x, height = state[:, 1:, :1], tip[:, 0], tip[:, 2]  # (N, hinges, 1), (N,), (N,)
        hinges = np.concatenate([np.cos(angle), np.sin(angle), state[:, 1:, 1:]], 2).reshape(len(tip), -1)
        obs = np.hstack([state[:, 0], tip[:, :self.double], hinges]).astype(np.float32)
        terminated = ~fresh & (height + 0.3 <= 1 if self.double else np.abs(angle[:, 0, 0]) > 0.2)
        truncated = self.steps >= self.max_episode_steps
        if self.double:
            reward = height >= 0.89 if self.sparse else 10 - (0.01 * x**2 + (height + 0.3 - 2) ** 2)
        else:
            reward = 100 * (~terminated & (self.steps % 200 == 0)) if self.sparse else 1
        self.done = terminated | truncated
        return obs, np.where(fresh, 0.0, reward), terminated, truncated, {}

    def __del__(self):
        pybullet.disconnect(**self.world)

class PendulumEnv(gym.Env):
    """One pendulum, for `gym.make`."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(self, double=False, sparse=True, render_mode=None):
        self.envs, self.render_mode = PendulumVectorEnv(1, double, sparse), render_mode
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.envs.np_random = self.np_random
        return self.envs.reset()[0][0], {}

    def step(self, action):
        self.envs.done[:] = False  # past its end, a pendulum runs on
        obs, reward, terminated, _, _ = self.envs.step(action[None])
        return obs[0], float(reward[0]), bool(terminated[0]), False, {}

    def render(self):
        view = pybullet.computeViewMatrix((0, -2, 0.6), (0, 0, 0.4), (0, 0, 1))
        lens = pybullet.computeProjectionMatrixFOV(60, 4 / 3, 0.1, 10)
        renderer = {"renderer": pybullet.ER_TINY_RENDERER, **self.envs.world}  # needs no screen
        image = pybullet.getCameraImage(320, 240, view, lens, **renderer)[2]
        return np.reshape(image, (240, 320, 4))[..., :3].astype(np.uint8)

for double, sparse, threshold in (0, 1, 475), (1, 1, 950), (0, 0, 950), (1, 0, 9100):
    name = f"Inverted{'Double' * double}PendulumPyBullet{'Sparse' * sparse}Env-v0"
    gym.register(name, PendulumEnv, threshold, max_episode_steps=1000, vector_entry_point=PendulumVectorEnv,
                 kwargs={"double": bool(double), "sparse": bool(sparse)})

class Actor(nn.Module):
    """pi(a | s): tanh of a Gaussian, scaled to the action space. ValueError if the spaces don't fit."""
    def __init__(self, config):
        super().__init__()
        env = gym.make(config.env_id)
        obs_space, space, hidden_size = env.observation_space, env.action_space, config.hidden_size
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(f"{config.env_id} has observations {obs_space}, expected a flat Box")
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise ValueError(f"{config.env_id} has actions {space}, expected a flat Box with bounds")
        torch.set_num_threads(1)  # networks of this size are faster on one core
        torch.manual_seed(config.seed)
        self.layers = nn.Sequential(nn.Linear(obs_space.shape[0], hidden_size), nn.ReLU(),
                                    nn.Linear(hidden_size, hidden_size), nn.ReLU(),
                                    nn.Linear(hidden_size, 2 * space.shape[0]))  # mean and log-std of u
        self.register_buffer("center", torch.as_tensor((space.high + space.low) / 2))
        self.register_buffer("scale", torch.as_tensor((space.high - space.low) / 2))
        self.steps = 0  # of training
        self.to(config.device)

    def forward(self, obs):
        mean, log_std = self.layers(obs).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)

    def sample(self, obs, noise=None):
        """Draw actions (B, act_dim), differentiably, and log pi of each (B,) (eq. 21, made stable).
        `noise` (B, act_dim) is standard normal; None draws it."""
        mean, log_std = self(obs)
        noise = torch.randn_like(mean) if noise is None else noise
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - softplus(-2 * u)) + self.scale.log()  # of d action / d u
        return self.center + self.scale * u.tanh(), (log_normal - log_slope).sum(-1)

    @torch.inference_mode()
    def act(self, obs, noise=None):
        """Actions (B, act_dim) for numpy obs (B, obs_dim): the tanh of the mean, or sampled with `noise`."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.scale.device)
        if noise is None:
            return (self.center + self.scale * self(obs)[0].tanh()).cpu().numpy()
        return self.sample(obs, noise)[0].cpu().numpy()

class Critic(nn.Module):
    """Two networks Q(s, a), (2, B), with stacked weights, so that one product serves both."""
    def __init__(self, actor, config):
        super().__init__()
        sizes = actor.layers[0].in_features + len(actor.scale), config.hidden_size, config.hidden_size, 1
        self.plain, self.center, self.scale = config.plain, actor.center, actor.scale
        pairs = list(zip(sizes, sizes[1:]))  # initialised like nn.Linear
        self.weights = nn.ParameterList(torch.empty(2, n, m).uniform_(-1, 1) / n**0.5 for n, m in pairs)
        self.biases = nn.ParameterList(torch.empty(2, 1, m).uniform_(-1, 1) / n**0.5 for n, m in pairs)
        self.to(config.device)

    def forward(self, obs, action):
        x = torch.cat([obs, (action - self.center) / self.scale], -1).expand(2, -1, -1)
        for weight, bias in list(zip(self.weights, self.biases))[:-1]:
            x = torch.baddbmm(bias, x, weight)
            x = relu(x if self.plain else layer_norm(x, x.shape[-1:]))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1]).squeeze(-1)

Batch = namedtuple("Batch", "obs action reward next_obs terminated")  # obs (B, obs_dim), reward (B,)

class ReplayBuffer:
    """The latest `size` transitions, in preallocated arrays."""
    def __init__(self, size, obs_dim, act_dim):
        self.size, self.added = size, 0
        obs, next_obs = np.zeros((2, size, obs_dim), np.float32)
        action, reward = np.zeros((size, act_dim), np.float32), np.zeros(size, np.float32)
        self.arrays = Batch(obs, action, reward, next_obs, np.zeros(size, bool))

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

def critic_loss(critic, target_critic, actor, batch, alpha, gamma):
    """Sum over both Q of E[(Q(s, a) - y)^2] with
    y = r + gamma (1 - terminated) (min Q_target(s', a') - alpha log pi(a'|s')), a' ~ pi (twice eqs. 5 and 6).
    No gradient reaches y. Truncation does not cut the bootstrap."""
    with torch.no_grad():
        next_action, next_log_prob = actor.sample(batch.next_obs)
        next_value = target_critic(batch.next_obs, next_action).amin(0) - alpha * next_log_prob  # (B,)
        target = batch.reward + gamma * (1 - batch.terminated.float()) * next_value
    return 2 * mse_loss(critic(batch.obs, batch.action), target.expand(2, -1))

def actor_loss(critic, obs, action, log_prob, alpha):
    """E[alpha log pi(a|s) - min Q(s, a)] for actions just drawn from pi (eq. 7)."""
    return (alpha * log_prob - critic(obs, action).amin(0)).mean()

def temperature_loss(log_alpha, log_prob, target_entropy):
    """-log alpha E[log pi(a|s) + target_entropy]: alpha falls while entropy is above its target (eq. 18)."""
    return -log_alpha * (log_prob.detach() + target_entropy).mean()

def update_critic(critic, target_critic, actor, log_alpha, optimizer, batch, config):
    """A gradient step of both Q, and a step of their targets towards them; returns the loss.
    FloatingPointError if it isn't finite."""
    loss = critic_loss(critic, target_critic, actor, batch, log_alpha.detach().exp(), config.gamma)
    optimizer.zero_grad()
    loss.backward()
    if not torch.isfinite(loss):
        raise FloatingPointError("the critics' loss is not finite")
    optimizer.step()
    for target_weight, weight in zip(target_critic.parameters(), critic.parameters()):
        target_weight.data.lerp_(weight.data, config.tau)
    return loss.item()

def update_actor(actor, critic, log_alpha, optimizer, obs, target_entropy):
    """A gradient step of policy and temperature for obs (B, obs_dim); returns the policy's loss."""
    critic.requires_grad_(False)
    action, log_prob = actor.sample(obs)
    loss = actor_loss(critic, obs, action, log_prob, log_alpha.detach().exp())
    optimizer.zero_grad()
    (loss + temperature_loss(log_alpha, log_prob, target_entropy)).backward()
    optimizer.step()
    critic.requires_grad_(True)
    return loss.item()

def print_progress(row):
    """Print a dict of figures on one line."""
    print(*(f"{k} {v:,}" if type(v) is int else f"{k} {v:.3g}" for k, v in row.items()), sep="  ", flush=True)

def train(config, report=print_progress, agent=None):
    """Train `agent` (None: a new one) and return it; `report` gets a dict of figures about once a second.
    FloatingPointError if an observation or a loss stops being finite."""
    agent = agent or Actor(config)
    torch.manual_seed(config.seed)
    actor = copy.deepcopy(agent)  # this one acts and learns, the agent is its average
    critic = Critic(actor, config)
    target_critic = copy.deepcopy(critic).requires_grad_(False)
    log_alpha = torch.tensor(math.log(config.alpha), device=config.device, requires_grad=True)
    target_entropy = (agent.scale.log() - 1).sum()  # -dim(A) for actions in [-1, 1], whatever the unit
    q_optimizer = torch.optim.Adam(critic.parameters(), fused=True)
    optimizer = torch.optim.Adam([*actor.parameters(), log_alpha], fused=True)
    limits = config.max_episode_steps, gym.make(config.env_id).spec.max_episode_steps  # 0, None: none
    limit = {"max_episode_steps": min(filter(None, limits))} if any(limits) else {}
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs, **limit)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    goal = getattr(envs.spec, "reward_threshold", None) if config.eval_frequency else None
    rng = np.random.default_rng(config.seed)
    obs, _ = envs.reset(seed=config.seed)
    buffer_size = min(config.buffer_size, config.total_timesteps + config.num_envs)
    buffer = ReplayBuffer(buffer_size, obs.shape[1], len(agent.scale))
    done, updates, q_loss, policy_loss = np.zeros(config.num_envs, bool), 0, np.nan, np.nan
    correlation = config.noise_correlation
    noise = torch.randn(config.num_envs, len(agent.scale), device=config.device)
    start, reported = time.perf_counter(), 0

    for step in range(config.num_envs, config.total_timesteps + config.num_envs, config.num_envs):
        noise = correlation * noise + (1 - correlation**2) ** 0.5 * torch.randn_like(noise)
        action = actor.act(obs, noise)
        if step <= config.learning_starts:
            action = rng.uniform(envs.action_space.low, envs.action_space.high).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        if not np.isfinite(next_obs).all():
            raise FloatingPointError(f"an observation is not finite at step {step}")

        stored = ~done  # the step after the last one of an episode only resets it
        transitions = obs, action, config.reward_scale * reward, next_obs, terminated
        buffer.add(*(array[stored] for array in transitions))
        obs, done = next_obs, terminated | truncated
        agent.steps = step

        rate = config.learning_rate * max(config.end_learning_rate, 1 - step / config.total_timesteps)
        q_optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = rate
        while updates < (step - config.learning_starts) // config.train_frequency:
            batch = buffer.sample(config.batch_size, rng, config.device)
            q_loss = update_critic(critic, target_critic, actor, log_alpha, q_optimizer, batch, config)
            updates += 1
            if updates % config.policy_frequency == 0:
                policy_loss = update_actor(actor, critic, log_alpha, optimizer, batch.obs, target_entropy)
                share = 1 / max(1, config.averaging * updates / config.policy_frequency)
                for average, weight in zip(agent.parameters(), actor.parameters()):
                    average.data.lerp_(weight.data, share)

        solved = goal is not None and step % config.eval_frequency < config.num_envs
        if solved:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + 20_000 + step)
            solved = returns.mean() - returns.std() >= goal  # the mean alone lets one failure in twenty pass
        seconds = time.perf_counter() - start
        if seconds > reported + 1 or solved or step >= config.total_timesteps:
            reported, mean_return = seconds, float(np.mean(envs.return_queue or np.nan))
            report({"step": step, "episodes": int(envs.episode_count), "return": mean_return,
                    "critic_loss": q_loss, "actor_loss": policy_loss,
                    "alpha": log_alpha.exp().item(), "seconds": seconds})
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
    """Train or load, save, evaluate on 20 episodes. Exit status 2: bad input, 1: not finite, 130: Ctrl-C."""
    parser = argparse.ArgumentParser("sac.py", argparse.SUPPRESS, argument_default=argparse.SUPPRESS)
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
        agent = Actor(config)
        if load:
            agent.load_state_dict(saved[f"sac.py {config.env_id}"])  # another script or task: another key
            agent.steps = int(saved["steps"])
        if save and (os.path.isdir(save) or not os.access((os.path.dirname(save) or ".") + "/", os.W_OK)):
            raise ValueError(f"{save}: cannot be written, expected a file in an existing folder")
    except Exception as error:
        parser.error((f"{load}: no checkpoint of sac.py: " if load else "") + str(error).split("\n")[0])
    try:
        train(config, agent=agent) if not load else None
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        parser.exit(1, f"sac.py: error: {error}\n")
    if save:
        try:
            weights = {f"sac.py {config.env_id}": agent.state_dict()}
            torch.save({"config": vars(config), "steps": agent.steps, **weights}, f"{save}.tmp")
            os.replace(f"{save}.tmp", save)  # at no moment is there half a file
        except Exception as error:  # a full disk, say
            parser.exit(1, f"sac.py: error: {save}: not written: {str(error).splitlines()[0]}\n")
    if interrupted:
        parser.exit(130)
    returns = evaluate(agent, config.env_id, 20, config.seed + 10_000)
    print(f"sac.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {agent.steps:,} steps, "
          f"{time.perf_counter() - start:.1f} s")

if __name__ == "__main__":
    main()
