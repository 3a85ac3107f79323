"""What benchmark.py trains: a list of experiments, each a script with settings and perhaps a change.

A change is a function that gets the imported script and changes it before `main` runs.
"""
import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, NamedTuple, Optional

import gymnasium as gym
import numpy as np
import torch

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))  # for demos.pendulums
from demos.record import record, swing_up

SINGLE = "demos.pendulums:InvertedPendulumPyBulletSparseEnv-v0"
SINGLE_DENSE = "demos.pendulums:InvertedPendulumPyBulletEnv-v0"
DOUBLE = "demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0"
SWING_UP = "demos.pendulums:InvertedPendulumSwingupPyBulletSparseEnv-v0"
SINGLE_DEMO = "demos/InvertedPendulumPyBulletSparseEnv-v0.npz"
SWING_UP_DEMO = "demos/InvertedPendulumSwingupPyBulletSparseEnv-v0.npz"


class Experiment(NamedTuple):
    """A script to train, once with each seed."""
    table: str  # where it is reported
    name: str
    script: str
    goal: Optional[float] = None  # a run is solved if its mean return reaches this
    settings: dict = {}  # other than the script's defaults
    seeds: range = range(3001, 3021)
    change: Optional[Callable] = None
    recording: Optional[Callable] = None  # returns the arrays of a file of demonstrations
    peer: dict = {}  # settings of Stable-Baselines3, which is then trained in place of the script


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
    """The target network is a copy that is made every 500 gradient steps, as in the paper."""
    td_loss, copies, calls = module.td_loss, [], []

    def changed(q_network, target_network, *args):
        if len(calls) % 500 == 0:
            copies.append(copy.deepcopy(q_network))
        calls.append(1)
        return td_loss(q_network, copies[-1], *args)
    module.td_loss = changed


def no_normalisation(module):
    """The advantage as it was travels beside log_prob, past the normalisation in main."""
    make_batch, surrogate = module.make_batch, module.clipped_surrogate

    def changed_batch(*args):
        *others, log_prob, advantage, target = make_batch(*args)
        return [*others, torch.stack([log_prob, advantage], -1), advantage, target]
    module.make_batch = changed_batch
    module.clipped_surrogate = lambda log_prob, old, _, clip_coef: surrogate(
        log_prob, old[:, 0], old[:, 1], clip_coef)


def one_q(module):
    class OneQ(module.Critics):
        def forward(self, obs, action):
            return super().forward(obs, action)[:1]
    module.Critics = OneQ


def random_policy():
    data, _ = record(lambda obs: np.zeros((len(obs), 1)), SWING_UP, episodes=5, steps=300,
                     noise=0, epsilon=1, seed=3000)
    return data


def first_demonstration(failures=False):
    """The first episode of the swing-up's demonstrations; or those that earn nothing."""
    data = dict(np.load(TOP / SWING_UP_DEMO))
    episode = np.append(0, np.cumsum(data["terminals"] | data["timeouts"])[:-1])  # its number
    earned = np.bincount(episode, data["rewards"])
    kept = earned[episode] == 0 if failures else episode == 0
    return {key: array[kept] for key, array in data.items()}


def failed_demonstrations():
    return first_demonstration(failures=True)


def teacher(module):
    """No training: the rule that made the demonstrations plays, without noise."""
    module.main = lambda config, report: SimpleNamespace(act=swing_up)


def behaviour_cloning(module):
    """No environment: the policy's mean learns the actions of the demonstrations."""
    def main(config, report):
        torch.manual_seed(config.seed)
        spaces = gym.make(config.env_id).observation_space, gym.make(config.env_id).action_space
        agent = module.ActorCritic(*spaces, config.hidden_size)
        demo_obs, demo_action = module.load_demonstrations(config.demo, *spaces)
        optimizer = torch.optim.Adam(agent.actor.parameters(), lr=1e-3)
        for _ in range(5_000):
            index = torch.randint(len(demo_obs), (128,))
            error = torch.nn.functional.mse_loss(agent.actor(demo_obs[index]), demo_action[index])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return agent
    module.main = main


def train_peer(module, config, peer, report):
    """Train Stable-Baselines3, evaluated as often as the script and ended by the same rule."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    torch.set_num_threads(1)
    peer = {"n_envs": 1, **peer}
    algorithm, num_envs = peer.pop("algorithm"), peer.pop("n_envs")
    for name, value in peer.items():
        if str(value).startswith("lin_"):  # in RL Zoo's files: falls to zero
            peer[name] = lambda left, first=float(value[4:]): left * first
    envs = make_vec_env(config.env_id, num_envs, seed=config.seed)
    model = getattr(stable_baselines3, algorithm)(
        "MlpPolicy", envs, seed=config.seed, device="cpu", **peer)
    agent = SimpleNamespace(act=lambda obs: model.predict(obs, deterministic=True)[0])
    threshold = envs.envs[0].spec.reward_threshold
    threshold = np.inf if threshold is None else threshold

    def goes_on(*_):
        step = model.num_timesteps
        if step % config.eval_frequency >= num_envs and step < config.total_timesteps:
            return True
        returns = module.evaluate(agent, config.env_id, config.eval_episodes, config.seed + step)
        report({"step": step, "return": returns.mean().item()})
        if np.mean(returns >= threshold) >= 0.95:
            returns = module.evaluate(agent, config.env_id, 100, config.seed + step + 10**6)
        return bool(np.mean(returns >= threshold) < 0.95 and step < config.total_timesteps)
    model.learn(config.total_timesteps, callback=goes_on)
    return agent


PPO_PENDULUM = dict(
    env_id="Pendulum-v1", gamma=0.9, gae_lambda=0.9, num_envs=16, num_steps=128, num_minibatches=8,
    learning_rate=1e-3, update_epochs=20, total_timesteps=102_400, eval_frequency=20_480)
TASKS = {name: Experiment("tasks", name, name.split("/")[0], goal, settings)
         for name, goal, settings in (
    ("dqn/CartPole-v1", 475, dict(env_id="CartPole-v1")),
    ("ppo/CartPole-v1", 495, dict(env_id="CartPole-v1")),
    ("ppo/Pendulum-v1", -300, PPO_PENDULUM),
    ("ppo/single dense", 950, dict(env_id=SINGLE_DENSE)),
    ("pofd/swing-up", 850, dict(env_id=SWING_UP)),
    ("pofd/single", 475, dict(env_id=SINGLE)),
    ("pofd/double", 950, dict(env_id=DOUBLE)),
    ("sac/double", 950, dict(env_id=DOUBLE)),
    ("sac/single dense", 950, dict(env_id=SINGLE_DENSE)))}
EXPERIMENTS = list(TASKS.values())



PEERS = {  # as in RL Zoo, but for the script's budget and network
    "dqn": dict(algorithm="DQN", learning_rate=2.3e-3, batch_size=64, gamma=0.99,
                buffer_size=100_000, learning_starts=1_000, target_update_interval=10,
                train_freq=256, gradient_steps=128, exploration_fraction=0.05,
                exploration_final_eps=0.04),
    "ppo": dict(algorithm="PPO", n_envs=8, learning_rate="lin_0.001", clip_range="lin_0.2",
                n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0),
}
DQN_LUNAR_LANDER = dict(  # as in RL Zoo: Stable-Baselines3's own settings do not learn it
    algorithm="DQN", learning_rate=6.3e-4, batch_size=128, buffer_size=50_000, learning_starts=0,
    gamma=0.99, target_update_interval=250, train_freq=4, gradient_steps=-1,
    exploration_fraction=0.12, exploration_final_eps=0.1, policy_kwargs={"net_arch": [256, 256]})


def add(table, base, what, seeds, change=None, recording=None, peer=None, **settings):
    """Add a task with a change, with other settings, or with a peer in place of the script."""
    EXPERIMENTS.append(TASKS[base]._replace(
        table=table, name=f"{base}, {what}", seeds=range(3001, 3001 + seeds), change=change,
        recording=recording, peer=peer or {}, settings={**TASKS[base].settings, **settings}))


def add_elsewhere(script, name, env_id, total_timesteps, peer, **settings):
    """Add the script's defaults and a peer's on a task that they were not tuned on."""
    settings = dict(env_id=env_id, total_timesteps=total_timesteps, eval_frequency=10_000, **settings)
    task = Experiment("elsewhere", f"{script}/{name}", script, None, settings, range(3001, 3004))
    EXPERIMENTS.extend([task, task._replace(name=f"{task.name}, Stable-Baselines3", peer=peer)])


add("controls", "pofd/swing-up", "lambda 0", 20, reward_lambda=0.0)
add("controls", "pofd/swing-up", "constant bonus", 10, discriminator_learning_rate=0.0)
add("controls", "pofd/swing-up", "random demonstrations", 10, recording=random_policy)
add("controls", "pofd/swing-up", "one demonstration", 10, recording=first_demonstration)
add("controls", "pofd/swing-up", "the two failures", 10, recording=failed_demonstrations)
add("controls", "pofd/swing-up", "the teacher", 10, teacher)
add("controls", "pofd/swing-up", "behaviour cloning", 10, behaviour_cloning, demo=SWING_UP_DEMO)
for base in "pofd/single", "pofd/double":
    add("controls", base, "lambda 0", 5, reward_lambda=0.0)
    add("controls", base, "constant bonus", 5, discriminator_learning_rate=0.0)

add("peers", "dqn/CartPole-v1", "Stable-Baselines3", 5, peer=PEERS["dqn"])
add("peers", "ppo/CartPole-v1", "Stable-Baselines3", 5, peer=PEERS["ppo"])

add_elsewhere("dqn", "Acrobot-v1", "Acrobot-v1", 100_000, dict(algorithm="DQN"))
add_elsewhere("dqn", "LunarLander-v3", "LunarLander-v3", 100_000, DQN_LUNAR_LANDER, num_envs=4)
add_elsewhere("dqn", "MountainCar-v0", "MountainCar-v0", 100_000, dict(algorithm="DQN"))
add_elsewhere("ppo", "Acrobot-v1", "Acrobot-v1", 100_000, dict(algorithm="PPO"))
add_elsewhere("ppo", "LunarLander-v3", "LunarLander-v3", 200_000, dict(algorithm="PPO"))
add_elsewhere("ppo", "BipedalWalker-v3", "BipedalWalker-v3", 200_000, dict(algorithm="PPO"))
add_elsewhere("pofd", "single dense", SINGLE_DENSE, 100_000, dict(algorithm="PPO"),
              demo=SINGLE_DEMO)
add_elsewhere("sac", "Pendulum-v1", "Pendulum-v1", 10_000, dict(algorithm="SAC"))
add_elsewhere("sac", "HalfCheetah-v5", "HalfCheetah-v5", 20_000, dict(algorithm="SAC"))
add_elsewhere("sac", "Hopper-v5", "Hopper-v5", 20_000, dict(algorithm="SAC"))

add("departures", "dqn/CartPole-v1", "no LayerNorm", 10, no_layer_norm)
add("departures", "dqn/CartPole-v1", "copied target", 10, copied_target)
add("departures", "dqn/CartPole-v1", "one environment", 10, num_envs=1)
add("departures", "dqn/CartPole-v1", "no ending", 10, no_ending)
add("departures", "ppo/CartPole-v1", "no clipped gradients", 10, max_grad_norm=1e9)
add("departures", "ppo/CartPole-v1", "no normalisation", 10, no_normalisation)
add("departures", "ppo/CartPole-v1", "no entropy bonus", 10, ent_coef=0.0)
add("departures", "ppo/CartPole-v1", "no ending", 10, no_ending)
add("departures", "pofd/double", "no reward scale", 10, reward_scale=1.0, reward_lambda=1.0)
add("departures", "pofd/swing-up", "no fading", 10, imitation_fraction=1e9)
add("departures", "pofd/swing-up", "no clipped gradients", 10, max_grad_norm=1e9)
add("departures", "sac/double", "no reward scale", 10, reward_scale=1.0)
add("departures", "sac/double", "no ending", 10, no_ending)

add("break it", "dqn/CartPole-v1", "no target network", 5, tau=1.0)
add("break it", "dqn/CartPole-v1", "no replay", 5, buffer_size=16)
add("break it", "dqn/CartPole-v1", "no exploration", 5, end_e=0.0, exploration_fraction=1e-6)
add("break it", "dqn/CartPole-v1", "no failure", 5, no_failure)
add("break it", "ppo/CartPole-v1", "no clipped ratio", 5, clip_coef=1e6)
add("break it", "ppo/CartPole-v1", "half the horizon", 5, gamma=0.98)
add("break it", "ppo/CartPole-v1", "no failure", 5, no_failure)
add("break it", "pofd/single", "opposite sign", 5, reward_lambda=-0.1)
add("break it", "sac/double", "one Q", 5, one_q)
add("break it", "sac/double", "no target network", 5, tau=1.0)
add("break it", "sac/double", "no failure", 5, no_failure)
