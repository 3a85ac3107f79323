"""Record demonstrations in D4RL's format (.npz): few, and imperfect on purpose.

`python demos/record.py ppo.py --load agent.pt --noise 0.5 -o mine.npz` plays what `--save` wrote, with noise.
An earlier ppo.py made the files in this folder by these commands (today they give others of the same kind):

    python ppo.py --env-id demos.pendulums:InvertedPendulumPyBulletEnv-v0 --save single.pt
    python demos/record.py ppo.py --load single.pt --noise 0.3 --epsilon 0.6 --seed 3 \\
        --env-id demos.pendulums:InvertedPendulumPyBulletSparseEnv-v0 \\
        -o demos/InvertedPendulumPyBulletSparseEnv-v0.npz
    python ppo.py --env-id demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0 --save double.pt
    python demos/record.py ppo.py --load double.pt --noise 0.5 --epsilon 0.18 --seed 4 \\
        -o demos/InvertedDoublePendulumPyBulletSparseEnv-v0.npz
    python demos/record.py swing -o demos/MountainCarContinuous-v0.npz
"""
import argparse
import os
import sys
import types
from dataclasses import fields, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for demos.pendulums


def script_path(name):
    """For argparse: the path of a script, given by its path or, from any folder, by its name."""
    for path in (Path(name), ROOT / name):
        if path.suffix == ".py" and path.is_file():
            return path.resolve()
    raise argparse.ArgumentTypeError(f"{name}: no such script, expected dqn.py, ppo.py, pofd.py or sac.py")


def load_script(path, source=None, names=()):
    """A script as a module, run from its text, where `names` are known. Its folder may hold environments."""
    module = types.ModuleType(path.stem)
    vars(module).update(names)
    module.__file__, module.source = str(path), source or path.read_text()
    sys.path.insert(0, str(path.parent))
    exec(compile(module.source, path, "exec"), vars(module))
    return module


def make_config(module, flags, **defaults):
    """The script's Config for its own flags; `defaults` replace the script's."""
    parser = argparse.ArgumentParser(f"{module.__name__}.py")
    for field in fields(module.Config):
        default = defaults.get(field.name, field.default)
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=default)
    return module.Config(**vars(parser.parse_args(flags)))


def make_agent(module, config):
    """The agent as it is before training: `main` makes it, and has no step to take."""
    try:
        return module.main(replace(config, total_timesteps=0))
    except UnboundLocalError as error:  # at its end `main` asks for its last step, in vain
        return error.__traceback__.tb_next.tb_frame.f_locals["agent"]


def load_agent(module, path):
    """The agent that the script's `--save` wrote, and its Config."""
    if Path(path).read_bytes()[:2] != b"PK":  # torch.save makes a zip file
        raise ValueError(f"{path}: expected a file that the script's --save wrote")
    saved = torch.load(path, weights_only=True)
    config = module.Config(**saved["config"])
    agent = make_agent(module, config)
    agent.load_state_dict(saved["weights"])
    return agent, config


def swing(obs):
    """A rule for MountainCarContinuous-v0: full force in the direction in which the car rolls."""
    return np.where(obs[:, 1:] < 0, -1, 1).astype(np.float32)


def record(act, env_id, episodes, noise, epsilon, seed):
    """Play `episodes` side by side: D4RL's arrays, one episode after the other, and the returns."""
    envs = gym.make_vec(env_id, num_envs=episodes)
    space, rng = envs.single_action_space, np.random.default_rng(seed)
    envs.action_space.seed(seed)
    obs, _ = envs.reset(seed=seed)
    steps, running = [], np.ones(episodes, bool)
    while running.any():
        action, random_action = act(obs), envs.action_space.sample()
        if isinstance(space, gym.spaces.Box):
            action = np.clip(action + noise * rng.standard_normal(action.shape), space.low, space.high)
        random = rng.random((episodes,) + (1,) * (action.ndim - 1)) < epsilon
        action = np.where(random, random_action, action).astype(space.dtype)  # as executed
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        steps.append((obs, action, reward.astype(np.float32), terminated, truncated, running))
        running, obs = running & ~(terminated | truncated), next_obs
    envs.close()
    *arrays, running = (np.array(x).swapaxes(0, 1) for x in zip(*steps))  # (episodes, steps, ...)
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    return {key: array[running] for key, array in zip(keys, arrays)}, (arrays[2] * running).sum(1)


def main(argv=None):
    parser = argparse.ArgumentParser("record.py", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=lambda name: name if name == "swing" else script_path(name),
                        help="the script whose --save wrote the agent; or swing")
    parser.add_argument("--load", help="what --save wrote")
    parser.add_argument("--env-id", help="by default the one on which the agent was trained")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="standard deviation added to each action")
    parser.add_argument("--epsilon", type=float, default=0.0, help="probability of a random action instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", required=True, help="the .npz to write")
    flags = parser.parse_args(argv)
    act, env_id = swing, "MountainCarContinuous-v0"
    if flags.script != "swing":
        if not flags.load:
            parser.error("expected --load and what the script's --save wrote")
        agent, config = load_agent(load_script(flags.script), flags.load)
        act, env_id = agent.act, flags.env_id or config.env_id
    data, returns = record(act, env_id, flags.episodes, flags.noise, flags.epsilon, flags.seed)
    with open(f"{flags.output}.tmp", "wb") as file:
        np.savez_compressed(file, **data)
    os.replace(f"{flags.output}.tmp", flags.output)
    print(f"{flags.output}: {flags.episodes} episodes of {env_id}, {len(data['rewards']):,} steps, "
          f"mean return {returns.mean():.1f} ({', '.join(f'{x:g}' for x in returns)})")


if __name__ == "__main__":
    main()
