"""What benchmark.py trains: scripts with settings, and with changes.

A change is a function that gets the imported script and changes it before `main` runs.
"""
import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import ROOT, record, swing_up

SINGLE = "demos.pendulums:InvertedPendulumPyBullet"
DOUBLE = "demos.pendulums:InvertedDoublePendulumPyBullet"
SWING_UP = "demos.pendulums:InvertedPendulumSwingupPyBulletSparseEnv-v0"
SINGLE_DEMO = "demos/InvertedPendulumPyBulletSparseEnv-v0.npz"
SWING_UP_DEMO = ROOT / "demos/InvertedPendulumSwingupPyBulletSparseEnv-v0.npz"


class Experiment(NamedTuple):
    """A script to train, once with each seed."""
    table: str  # where it is reported
    name: str  # "script/task", or "script/task, what is different"
    goal: float  # a run is solved if its mean return reaches this; None for none
    settings: dict  # other than the script's defaults
    seeds: range
    change: Any = None  # function of the imported script
    recording: Any = None  # function that returns what a file of demonstrations holds
    peer: dict = {}  # settings of Stable-Baselines3, which is then trained in place of the script

    @property
    def script(self):
        return self.name.split("/")[0]


def own_copy(module, library, **changes):
    """Let a name like `nn` mean a copy of that library, changed for this script alone."""
    setattr(module, library, SimpleNamespace(**{**vars(getattr(module, library)), **changes}))


def change_envs(module, change):
    """Have `change(envs)` called for all environments that the script makes."""
    def make_vec(*args, **kwargs):
        envs = gym.make_vec(*args, **kwargs)
        change(envs)
        return envs
    own_copy(module, "gym", make_vec=make_vec)


def no_ending(module):
    """No environment says when it is solved, so that training goes on to its last step."""
    change_envs(module, lambda envs: setattr(envs.spec, "reward_threshold", None))


def no_failure(module):
    """Where an episode fails, it looks like the time limit, and bootstrapping goes on."""
    def change(envs):
        def changed(action):
            obs, reward, terminated, truncated, info = step(action)
            return obs, reward, np.zeros_like(terminated), terminated | truncated, info
        step, envs.step = envs.step, changed
    change_envs(module, change)


def no_layer_norm(module):
    own_copy(module, "nn", LayerNorm=module.nn.Identity)


def copied_target(module):
    """The target network is a copy made every 500 gradient steps, as in the paper."""
    def changed(q_network, target_network, *args):
        targets.append(targets[-1] if len(targets) % 500 else copy.deepcopy(q_network))
        return td_loss(q_network, targets[-1], *args)
    targets, td_loss, module.td_loss = [], module.td_loss, changed


def no_normalisation(module):
    """The advantage as it was travels beside log_prob, past the normalisation in main."""
    def changed_batch(*args):
        *others, log_prob, advantage, target = make_batch(*args)
        return [*others, torch.stack([log_prob, advantage], -1), advantage, target]

    def changed_surrogate(log_prob, old, normalised, clip_coef):
        return clipped_surrogate(log_prob, old[:, 0], old[:, 1], clip_coef)
    make_batch, module.make_batch = module.make_batch, changed_batch
    clipped_surrogate, module.clipped_surrogate = module.clipped_surrogate, changed_surrogate


def no_fading(module):
    make_batch = module.make_batch
    module.make_batch = lambda *args: make_batch(*args[:3], args[-1].reward_lambda, args[-1])


def random_policy():
    return record(lambda obs: np.zeros((len(obs), 1)), SWING_UP, episodes=5, steps=300,
                  noise=0, epsilon=1, seed=3000)[0]


def one_demonstration(failures=False):
    """The first of the demonstrations of the swing-up; or those that earn nothing."""
    data = dict(np.load(SWING_UP_DEMO))
    episode = np.cumsum(data["timeouts"]) - data["timeouts"]  # its number, for each step
    earned = np.bincount(episode, data["rewards"])
    kept = earned[episode] == 0 if failures else episode == 0
    return {key: array[kept] for key, array in data.items()}


def two_failures():
    return one_demonstration(failures=True)


def teacher(module):
    """No training: the rule that recorded the demonstrations plays, without noise."""
    module.main = lambda config, report: SimpleNamespace(act=swing_up)


def behaviour_cloning(module):
    """No environment: the policy's mean learns the actions of the demonstrations."""
    def clone(config, report):
        agent = main(replace(config, total_timesteps=0), report)
        data = np.load(SWING_UP_DEMO)
        obs, action = torch.tensor(data["observations"]), torch.tensor(data["actions"])
        optimizer = torch.optim.Adam(agent.actor.parameters(), lr=1e-3)
        for _ in range(5_000):
            index = torch.randint(len(obs), (128,))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(agent.actor(obs[index]), action[index]).backward()
            optimizer.step()
        return agent
    main, module.main = module.main, clone


def train_peer(module, config, peer, report):
    """Train Stable-Baselines3, evaluated as often as the script and ended by the same rule."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    torch.set_num_threads(1)
    algorithm, num_envs = getattr(stable_baselines3, peer["algorithm"]), peer.get("n_envs", 1)
    settings = {key: peer[key] for key in peer if key not in ("algorithm", "n_envs")}
    for name, value in settings.items():
        if str(value).startswith("lin_"):  # in RL Zoo's files: falls to zero
            settings[name] = lambda left, first=float(value[4:]): left * first
    envs = make_vec_env(config.env_id, num_envs, seed=config.seed)
    model = algorithm("MlpPolicy", envs, seed=config.seed, device="cpu", **settings)
    agent = SimpleNamespace(act=lambda obs: model.predict(obs, deterministic=True)[0])
    threshold = envs.envs[0].spec.reward_threshold

    def goes_on(*_):
        step = model.num_timesteps
        if step % config.eval_frequency >= num_envs and step < config.total_timesteps:
            return True
        returns = module.evaluate(agent, config.env_id, config.eval_episodes, config.seed + step)
        report({"step": step, "return": returns.mean().item()})
        if threshold is not None and np.mean(returns >= threshold) >= 0.98:
            returns = module.evaluate(agent, config.env_id, 100, config.seed + step + 10**6)
            return bool(np.mean(returns >= threshold) < 0.98)
        return step < config.total_timesteps
    model.learn(config.total_timesteps, callback=goes_on)
    return agent


PPO_PENDULUM = dict(
    env_id="Pendulum-v1", gamma=0.9, gae_lambda=0.9, num_envs=16, num_steps=128, num_minibatches=8,
    learning_rate=1e-3, update_epochs=20, total_timesteps=102_400, eval_frequency=20_480)
SEEDS = {"dqn": 3201, "ppo": 3001, "sac": 3001, "pofd": 3101}  # the first ones
EXPERIMENTS = []
for name, goal, settings in (
    ("dqn/CartPole-v1", 475, dict(env_id="CartPole-v1")),
    ("ppo/CartPole-v1", 495, dict(env_id="CartPole-v1")),
    ("ppo/Pendulum-v1", -300, PPO_PENDULUM),
    ("ppo/single dense", 950, dict(env_id=f"{SINGLE}Env-v0")),
    ("pofd/swing-up", 850, dict(env_id=SWING_UP)),
    ("pofd/single", 475, dict(env_id=f"{SINGLE}SparseEnv-v0")),
    ("pofd/double", 950, dict(env_id=f"{DOUBLE}SparseEnv-v0")),
    ("sac/double", 950, dict(env_id=f"{DOUBLE}SparseEnv-v0")),
    ("sac/single dense", 950, dict(env_id=f"{SINGLE}Env-v0")),
):
    first = SEEDS[name.split("/")[0]]
    EXPERIMENTS.append(Experiment("tasks", name, goal, settings, range(first, first + 20)))
TASKS = {e.name: e for e in EXPERIMENTS}


def add(table, seeds, task, what, change=None, recording=None, peer={}, **settings):  # noqa: B006
    """Add one of the tasks with something different."""
    e = TASKS[task]
    EXPERIMENTS.append(Experiment(
        table, f"{task}, {what}", e.goal, {**e.settings, **settings}, range(3001, 3001 + seeds),
        change, recording, peer))


add("controls", 20, "pofd/swing-up", "lambda 0", reward_lambda=0.0)
add("controls", 10, "pofd/swing-up", "constant bonus", discriminator_learning_rate=0.0)
add("controls", 10, "pofd/swing-up", "random demonstrations", recording=random_policy)
add("controls", 10, "pofd/swing-up", "one demonstration", recording=one_demonstration)
add("controls", 10, "pofd/swing-up", "the two failures", recording=two_failures)
add("controls", 10, "pofd/swing-up", "the teacher", teacher)
add("controls", 10, "pofd/swing-up", "behaviour cloning", behaviour_cloning)
for task in "pofd/single", "pofd/double":
    add("controls", 5, task, "lambda 0", reward_lambda=0.0)
    add("controls", 5, task, "constant bonus", discriminator_learning_rate=0.0)
add("peers", 5, "dqn/CartPole-v1", "Stable-Baselines3", peer=dict(  # RL Zoo's, in our budget
    algorithm="DQN", learning_rate=2.3e-3, batch_size=64, gamma=0.99, buffer_size=100_000,
    learning_starts=1_000, target_update_interval=10, train_freq=256, gradient_steps=128,
    exploration_fraction=0.05, exploration_final_eps=0.04))
add("peers", 5, "ppo/CartPole-v1", "Stable-Baselines3", peer=dict(
    algorithm="PPO", n_envs=8, learning_rate="lin_0.001", clip_range="lin_0.2", n_steps=32,
    batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0))
add("departures", 10, "dqn/CartPole-v1", "no LayerNorm", no_layer_norm)
add("departures", 10, "dqn/CartPole-v1", "copied target", copied_target)
add("departures", 10, "dqn/CartPole-v1", "one environment", num_envs=1)
add("departures", 10, "dqn/CartPole-v1", "no ending", no_ending)
add("departures", 10, "ppo/CartPole-v1", "no clipped gradients", max_grad_norm=1e9)
add("departures", 10, "ppo/CartPole-v1", "no normalisation", no_normalisation)
add("departures", 10, "ppo/CartPole-v1", "no entropy bonus", ent_coef=0.0)
add("departures", 10, "ppo/CartPole-v1", "no ending", no_ending)
add("departures", 10, "pofd/swing-up", "no clipped gradients", max_grad_norm=1e9)
add("departures", 10, "pofd/swing-up", "no fading", no_fading)
add("departures", 10, "pofd/double", "no reward scale", reward_scale=1.0, reward_lambda=1.0)
add("departures", 10, "sac/double", "no reward scale", reward_scale=1.0)
add("departures", 10, "sac/double", "no ending", no_ending)
add("break it", 5, "dqn/CartPole-v1", "no target network", tau=1.0)
add("break it", 5, "dqn/CartPole-v1", "no replay", buffer_size=16)
add("break it", 5, "dqn/CartPole-v1", "no exploration", end_e=0.0, exploration_fraction=1e-6)
add("break it", 5, "dqn/CartPole-v1", "no failure", no_failure)
add("break it", 5, "ppo/CartPole-v1", "no clipped ratio", clip_coef=1e6)
add("break it", 5, "ppo/CartPole-v1", "half the horizon", gamma=0.98)
add("break it", 5, "ppo/CartPole-v1", "no failure", no_failure)
add("break it", 5, "pofd/single", "opposite sign", reward_lambda=-0.1)
add("break it", 5, "sac/double", "no target network", tau=1.0)
add("break it", 5, "sac/double", "no failure", no_failure)

LUNAR_LANDER = dict(  # RL Zoo's: Stable-Baselines3's own defaults hardly learn it
    algorithm="DQN", learning_rate=6.3e-4, batch_size=128, buffer_size=50_000, learning_starts=0,
    gamma=0.99, target_update_interval=250, train_freq=4, gradient_steps=-1,
    exploration_fraction=0.12, exploration_final_eps=0.1, policy_kwargs={"net_arch": [256, 256]})
for script, env_id, steps, peer, settings in (
    ("dqn", "Acrobot-v1", 100_000, dict(algorithm="DQN"), {}),
    ("dqn", "LunarLander-v3", 100_000, LUNAR_LANDER, dict(num_envs=4)),
    ("dqn", "MountainCar-v0", 100_000, dict(algorithm="DQN"), {}),
    ("ppo", "Acrobot-v1", 100_000, dict(algorithm="PPO"), {}),
    ("ppo", "LunarLander-v3", 200_000, dict(algorithm="PPO"), {}),
    ("ppo", "BipedalWalker-v3", 200_000, dict(algorithm="PPO"), {}),
    ("pofd", f"{SINGLE}Env-v0", 100_000, dict(algorithm="PPO"), dict(demo=SINGLE_DEMO)),
    ("sac", "Pendulum-v1", 10_000, dict(algorithm="SAC"), {}),
    ("sac", "HalfCheetah-v5", 20_000, dict(algorithm="SAC"), {}),
    ("sac", "Hopper-v5", 20_000, dict(algorithm="SAC"), {}),
):
    settings |= dict(env_id=env_id, total_timesteps=steps, eval_frequency=10_000)
    name = f"{script}/{env_id.split('PyBullet')[0].split(':')[-1]}"
    ours = Experiment("elsewhere", name, None, settings, range(3001, 3004))
    EXPERIMENTS += [ours, ours._replace(name=f"{name}, Stable-Baselines3", peer=peer)]
