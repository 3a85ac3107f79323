"""POfD (Kang, Jie and Feng 2018, ICML): PPO, rewarded also for looking like a few demonstrations.

`python pofd.py` solves the sparse pendulum: 500.0 of 500 after 8,192 to 32,768 steps, ten seeds of ten.
env.step -> obs, action, reward (T, N) -> reward + lambda imitation_reward -> gae -> clipped_surrogate
            -> Adam
            obs, action and demonstrations -> discriminator_loss -> Adam
"""
# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "numpy==2.2.6", "pybullet==3.2.7"]
# ///
import argparse
import os
import time
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import pybullet
import pybullet_data
import torch
from torch import nn
from torch.distributions import Independent, Normal

@dataclass(frozen=True)
class Config:
    """Every setting, each also a flag: `--reward-lambda 0` is PPO. ValueError if out of range."""
    env_id: str = "InvertedPendulumPyBulletSparseEnv-v0"  # or module:id; flat Box observations and actions
    seed: int = 1  # of weights, environments, actions and minibatches
    device: str = "cpu"  # or cuda
    total_timesteps: int = 79_872  # environment steps, all environments together, unless solved before
    num_envs: int = 16  # N, environments side by side
    num_steps: int = 64  # T, steps of each environment between updates
    hidden_size: int = 64  # units in each of the two hidden layers
    learning_rate: float = 3e-3  # of Adam
    end_learning_rate: float = 0.5  # share of it to which it is annealed linearly; 1: constant
    max_grad_norm: float = 0.5  # longer gradients are shortened to this
    gamma: float = 0.998  # discount factor, per step
    gae_lambda: float = 0.95  # 0: one-step advantages, 1: whole returns
    update_epochs: int = 16  # passes over each rollout
    num_minibatches: int = 2  # gradient steps per pass
    clip_coef: float = 0.2  # the probability ratio gains nothing further than this from 1
    vf_coef: float = 0.5  # weight of the value loss
    ent_coef: float = 0.0  # weight of the entropy bonus
    reward_scale: float = 0.03  # times the reward, for learning only
    eval_frequency: int = 8_192  # steps between tests; one at reward_threshold ends training; 0: none
    eval_episodes: int = 40  # greedy episodes of such a test
    restarts: float = 0.25  # share of the environments that start afresh with each rollout; 0: at ends only
    demo: str = ""  # .npz of demonstrations; empty: demos/<env id>.npz beside this file
    reward_lambda: float = 0.1  # times the imitation reward, added to the environment's
    discriminator_steps: int = 20  # gradient steps of the discriminator per rollout
    discriminator_batch_size: int = 256  # pairs of the agent, and as many demonstrated ones, per such step
    discriminator_learning_rate: float = 1e-3  # 0 leaves D at 1/2, a constant bonus

    @property
    def demo_path(self):
        """The file of demonstrations."""
        name = self.env_id.split(":")[-1] + ".npz"
        return self.demo or os.path.join(os.path.dirname(os.path.abspath(__file__)), "demos", name)

    def __post_init__(self):
        shares = "end_learning_rate", "gamma", "gae_lambda", "restarts"
        for name, value in vars(self).items():
            low = 1 if type(getattr(Config, name)) is int and name not in ("seed", "eval_frequency") else 0
            high = 1 if name in shares else np.inf
            high = self.num_envs * (self.num_steps // 2) if name == "num_minibatches" else high
            if not isinstance(value, str) and not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")

class PendulumVectorEnv(gym.vector.VectorEnv):
    """N carts with one pole or two, 1 m apart in one Bullet world: a single physics step moves them all."""
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, double=False, max_episode_steps=np.inf):
        self.num_envs, self.double, self.max_episode_steps = num_envs, double, max_episode_steps
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
        angle, height = state[:, 1:, :1], tip[:, 2]  # (N, hinges, 1), (N,)
        hinges = np.concatenate([np.cos(angle), np.sin(angle), state[:, 1:, 1:]], 2).reshape(len(tip), -1)
        obs = np.hstack([state[:, 0], tip[:, :self.double], hinges]).astype(np.float32)
        terminated = ~fresh & (height + 0.3 <= 1 if self.double else np.abs(angle[:, 0, 0]) > 0.2)
        truncated = self.steps >= self.max_episode_steps
        reward = height >= 0.89 if self.double else 100 * (~terminated & (self.steps % 200 == 0))
        self.done = terminated | truncated
        return obs, np.where(fresh, 0.0, reward), terminated, truncated, {}

    def __del__(self):
        pybullet.disconnect(**self.world)

class PendulumEnv(gym.Env):
    """One pendulum, for `gym.make`."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(self, double=False, render_mode=None):
        self.envs, self.render_mode = PendulumVectorEnv(1, double), render_mode
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

for double, threshold in (False, 475), (True, 950):
    gym.register(f"Inverted{'Double' * double}PendulumPyBulletSparseEnv-v0", PendulumEnv, threshold,
                 max_episode_steps=1000, vector_entry_point=PendulumVectorEnv, kwargs={"double": double})

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
        if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(f"{config.env_id} has actions {action_space}, expected a flat Box")
        self.obs_dim, self.action_space, outputs = obs_space.shape[0], action_space, action_space.shape[0]
        self.low, self.high = action_space.low, action_space.high
        torch.set_num_threads(1)  # networks of this size are faster on one core
        torch.manual_seed(config.seed)
        self.actor = mlp(obs_space.shape[0], hidden_size, outputs, gain=0.01)  # a Gaussian's mean
        self.critic = mlp(obs_space.shape[0], hidden_size, 1, gain=1.0)
        self.log_std = nn.Parameter(torch.zeros(outputs))  # one for all states
        self.steps = 0  # of training
        self.to(config.device)

    def policy(self, obs):
        """pi(. | s), for obs (..., obs_dim)."""
        gaussian = Normal(self.actor(obs), self.log_std.exp(), validate_args=False)
        return Independent(gaussian, 1, validate_args=False)

    @torch.inference_mode()
    def act(self, obs, greedy=True):
        """Actions (B, act_dim) for numpy obs (B, obs_dim): greedy and clipped, or sampled."""
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

def load_demonstrations(path, obs_dim, action_space):
    """Observations (n, obs_dim) and executed actions (n, act_dim) of an .npz, float32. ValueError if bad."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("observations", "actions")}
    except Exception as error:
        raise ValueError(f"{path}: expected an .npz of observations and actions: {error}") from None
    for (key, array), width in zip(arrays.items(), (obs_dim, *action_space.shape)):
        shape = *arrays["actions"].shape[:1], width
        if array.dtype.kind not in "fiu" or array.shape != shape or array.size == 0:
            raise ValueError(f"{path}: {key} are {array.dtype} {array.shape}, expected floats (n, {width})")
        if not (np.abs(array) < np.float64(1e30)).all():
            raise ValueError(f"{path}: {key} contain numbers that are not finite, or 1e30 and more")
    action = np.clip(arrays["actions"], action_space.low, action_space.high)
    return arrays["observations"].astype(np.float32), action.astype(np.float32)

class Discriminator(nn.Module):
    """D(s, a), the probability that the agent executed a in s: 1/2 at first, whatever s and a."""
    def __init__(self, demo_obs, demo_action, hidden_size):
        super().__init__()
        self.mean, self.std = demo_obs.mean(0), demo_obs.std(0, correction=0) + 1e-8
        self.net = mlp(demo_obs.shape[1] + demo_action.shape[1], hidden_size, 1, gain=0.01)

    def forward(self, obs, action):
        """Logits (...), of either side on the demonstrations' scale: a car's speed is 0.07 at most."""
        obs = ((obs - self.mean) / self.std).clamp(-10, 10)
        return self.net(torch.cat([obs, action], -1)).squeeze(-1)

def discriminator_loss(agent_logits, demo_logits):
    """-E_agent[log D] - E_demo[log(1 - D)], D = sigmoid(logits): agent = 1, demonstration = 0."""
    return nn.functional.softplus(-agent_logits).mean() + nn.functional.softplus(demo_logits).mean()

def imitation_reward(logits):
    """-log D(s, a): large where D takes the agent for the demonstrations. No gradient flows back."""
    return -nn.functional.logsigmoid(logits.detach())

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

def update_discriminator(discriminator, optimizer, obs, action, demo_obs, demo_action, rng, config):
    """Learn to tell obs (B, obs_dim) and action (B, act_dim) of a rollout from (n, ...) demonstrated ones.
    Returns the last loss. FloatingPointError if a loss isn't finite."""
    for _ in range(config.discriminator_steps):
        index = rng.integers(len(obs), size=config.discriminator_batch_size)
        demo_index = rng.integers(len(demo_obs), size=config.discriminator_batch_size)
        agent_logits = discriminator(obs[index], action[index])
        demo_logits = discriminator(demo_obs[demo_index], demo_action[demo_index])
        loss = discriminator_loss(agent_logits, demo_logits)
        if not torch.isfinite(loss):
            raise FloatingPointError("the discriminator's loss is not finite")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()

def print_progress(row):
    """Print a dict of figures on one line."""
    print(*(f"{k} {v:,}" if type(v) is int else f"{k} {v:.3g}" for k, v in row.items()), sep="  ", flush=True)

def train(config, report=print_progress, agent=None):
    """Train `agent` (None: a new one) and return it; `report` gets a dict of figures about once a second.
    FloatingPointError if an observation or the loss stops being finite."""
    agent = agent or ActorCritic(config)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.Adam(agent.parameters(), eps=1e-5, fused=True)
    demo = load_demonstrations(config.demo_path, agent.obs_dim, agent.action_space)
    demo = [torch.as_tensor(x, device=config.device) for x in demo]  # obs, action
    with torch.random.fork_rng(devices=[]):  # so that PPO draws the same numbers without it
        discriminator = Discriminator(*demo, config.hidden_size).to(config.device)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, fused=True)
    rng = np.random.default_rng(config.seed)  # of the discriminator's minibatches
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(config.env_id, num_envs=config.num_envs))
    goal = getattr(envs.spec, "reward_threshold", None) if config.eval_frequency else None
    T, N = config.num_steps, config.num_envs
    obs, done = np.zeros((T + 1, *envs.observation_space.shape), np.float32), np.zeros((T + 1, N), bool)
    action, executed = np.zeros((2, T, *envs.action_space.shape), np.float32)  # drawn; clipped
    reward, terminated = np.zeros((T, N), np.float32), np.zeros((T, N), bool)
    obs[T], _ = envs.reset(seed=config.seed)
    step, solved, start, reported = 0, False, time.perf_counter(), 0

    while step < config.total_timesteps and not solved:
        rate = config.learning_rate * max(config.end_learning_rate, 1 - step / config.total_timesteps)
        optimizer.param_groups[0]["lr"] = rate
        restart = (np.arange(N) < config.restarts * N) & ~done[T]  # rollouts end in a bootstrap anyway
        if step and restart.any():
            obs[T], _ = envs.env.reset(options={"reset_mask": restart})
            envs.episode_returns[restart] = 0  # SyncVectorEnv would hide the mask from this wrapper
        obs[0], done[0] = obs[T], done[T]
        for t in range(T):
            action[t] = agent.act(obs[t], greedy=False)
            executed[t] = np.clip(action[t], agent.low, agent.high)
            obs[t + 1], reward[t], terminated[t], truncated, _ = envs.step(executed[t])
            done[t + 1] = terminated[t] | truncated  # if so, obs[t + 1] is the last, step t + 1 a reset
            step += N
            if not np.isfinite(obs[t + 1]).all():
                raise FloatingPointError(f"an observation is not finite at step {step}")

        arrays = obs, action, executed, reward * config.reward_scale, terminated, done[1:], ~done[:-1]
        s, a, e, r, end, last, stored = (torch.as_tensor(x, device=config.device) for x in arrays)
        with torch.no_grad():
            value, log_prob = agent.critic(s).squeeze(-1), agent.policy(s[:-1]).log_prob(a)
            imitation = imitation_reward(discriminator(s[:-1], e))  # (T, N), before D learns from them
            r = r + config.reward_lambda * imitation
            advantage = gae(r, value[:-1], value[1:], end, last, config.gamma, config.gae_lambda)
        batch = [x[stored] for x in (s[:-1], a, log_prob, advantage, advantage + value[:-1])]

        figures = update(agent, optimizer, batch, config)
        agent.steps = step

        pairs = [s[:-1][stored], e[stored], *demo]
        d_loss = update_discriminator(discriminator, d_optimizer, *pairs, rng, config)

        solved = goal is not None and step % config.eval_frequency < T * N
        if solved:
            returns = evaluate(agent, config.env_id, config.eval_episodes, config.seed + 20_000 + step)
            solved = returns.mean() - returns.std() >= goal  # the mean alone lets one failure in twenty pass
        seconds = time.perf_counter() - start
        if seconds > reported + 1 or solved or step >= config.total_timesteps:
            reported, mean_return = seconds, float(np.mean(envs.return_queue or np.nan))
            report({"step": step, "episodes": int(envs.episode_count), "return": mean_return, **figures,
                    "discriminator_loss": d_loss, "imitation_reward": imitation[stored].mean().item(),
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
    """Train or load, save, evaluate on 20 episodes. Exit status 2: bad input, 1: not finite, 130: Ctrl-C."""
    parser = argparse.ArgumentParser("pofd.py", argparse.SUPPRESS, argument_default=argparse.SUPPRESS)
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
        load or load_demonstrations(config.demo_path, agent.obs_dim, agent.action_space)
        if load:
            agent.load_state_dict(saved[f"pofd.py {config.env_id}"])  # another script or task: another key
            agent.steps = int(saved["steps"])
        if save and (os.path.isdir(save) or not os.access((os.path.dirname(save) or ".") + "/", os.W_OK)):
            raise ValueError(f"{save}: cannot be written, expected a file in an existing folder")
    except Exception as error:
        parser.error((f"{load}: no checkpoint of pofd.py: " if load else "") + str(error).split("\n")[0])
    try:
        train(config, agent=agent) if not load else None
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        parser.exit(1, f"pofd.py: error: {error}\n")
    if save:
        try:
            weights = {f"pofd.py {config.env_id}": agent.state_dict()}
            torch.save({"config": vars(config), "steps": agent.steps, **weights}, f"{save}.tmp")
            os.replace(f"{save}.tmp", save)  # at no moment is there half a file
        except Exception as error:  # a full disk, say
            parser.exit(1, f"pofd.py: error: {save}: not written: {str(error).splitlines()[0]}\n")
    if interrupted:
        parser.exit(130)
    returns = evaluate(agent, config.env_id, 20, config.seed + 10_000)
    print(f"pofd.py {config.env_id} seed {config.seed}: return {returns.mean():.1f} +- {returns.std():.1f} "
          f"(min {returns.min():g}) over {len(returns)} episodes, {agent.steps:,} steps, "
          f"{time.perf_counter() - start:.1f} s")

if __name__ == "__main__":
    main()
