"""Record demonstrations: an agent or a rule plays, with noise, so that the teacher isn't perfect.

The file has D4RL's keys. These commands made those in this folder, with the ppo.py of their time:

    python demos/record.py swing_up --noise 0.3 --steps 300 --seed 5 \\
        -o demos/InvertedPendulumSwingupPyBulletSparseEnv-v0.npz
    python ppo.py --env-id demos.pendulums:InvertedPendulumPyBulletEnv-v0 --save one.pt
    python demos/record.py ppo.py --load one.pt --noise 0.3 --epsilon 0.6 --seed 3 \\
        --env-id demos.pendulums:InvertedPendulumPyBulletSparseEnv-v0 \\
        -o demos/InvertedPendulumPyBulletSparseEnv-v0.npz
    python ppo.py --env-id demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0 --save two.pt
    python demos/record.py ppo.py --load two.pt --noise 0.5 --epsilon 0.18 --seed 4 \\
        -o demos/InvertedDoublePendulumPyBulletSparseEnv-v0.npz"""
import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for demos.pendulums
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")  # D4RL's
SWING_UP = "demos.pendulums:InvertedPendulumSwingupPyBulletSparseEnv-v0"


def load_script(path):
    """Import a script as a module. Its folder may hold the environments that it trains on."""
    path = Path(path).resolve() if Path(path).is_file() else ROOT / path
    if path.suffix != ".py" or not path.is_file():
        raise argparse.ArgumentTypeError(f"{path}: no such script, expected for example ppo.py")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_config(module, flags, **defaults):
    """The script's Config for its own flags; `defaults` replace the script's."""
    parser = argparse.ArgumentParser(f"{module.__name__}.py", allow_abbrev=False)
    for field in dataclasses.fields(module.Config):
        default = defaults.get(field.name, field.default)
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=default)
    return module.Config(**vars(parser.parse_args(flags)))


def make_agent(module, config):
    """The agent before training: the script's network that has a method `act`."""
    envs = gym.make_vec(config.env_id, num_envs=1)
    envs.close()
    torch.manual_seed(config.seed)
    network = next(value for value in vars(module).values() if hasattr(value, "act"))
    return network(envs.single_observation_space, envs.single_action_space, config.hidden_size)


def load_agent(module, path):
    """What the script's `--save` wrote: an agent and its Config."""
    try:
        saved = torch.load(path, weights_only=True)
        config = module.Config(**saved["config"])
        assert vars(config).keys() == saved["config"].keys(), "it has other settings"
        agent = make_agent(module, config)
        agent.load_state_dict(saved["weights"])
    except Exception as error:
        raise ValueError(f"{path}: not an agent of this {module.__name__}.py: {error}") from None
    return agent, config


def swing_up(obs):
    """A rule for the swing-up: pump energy into the pole, then catch it near the top."""
    x, vx, cos, sin, speed = obs.T
    angle = np.arctan2(sin, cos)
    pump = -np.sign(speed * cos) - 0.35 * x
    catch = 5.5 * angle + 0.63 * speed + 0.1 * x + 0.5 * vx
    action = np.where(cos > 0.65, catch, pump)
    return np.clip(action, -1, 1)[:, None].astype(np.float32)


def record(act, env_id, episodes, steps, noise, epsilon, seed):
    """Play episodes side by side, each for at most `steps`: D4RL's arrays, and the returns."""
    envs = gym.make_vec(env_id, num_envs=episodes)
    space, rng = envs.single_action_space, np.random.default_rng(seed)
    envs.action_space.seed(seed + 1)  # or else these numbers would be those of rng
    obs, _ = envs.reset(seed=seed)
    limit = steps or envs.spec.max_episode_steps or 1_000
    running, rows = np.ones(episodes, bool), []
    while running.any():
        obs = np.array(obs, np.float32)  # a copy, because some environments reuse theirs
        action, random_action = act(obs), envs.action_space.sample()
        if isinstance(space, gym.spaces.Box):
            action = action + noise * rng.standard_normal(action.shape)
            action = np.clip(action, space.low, space.high)
        chosen = rng.random(episodes) < epsilon
        action[chosen] = random_action[chosen]
        action = action.astype(space.dtype)  # as executed
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        terminal = np.array(terminated, bool)
        timeout = np.logical_or(truncated, len(rows) + 1 >= limit)
        rows.append((obs, action, np.array(reward, np.float32), terminal, timeout, running))
        running = running & ~(terminal | timeout)
        obs = next_obs
    envs.close()
    *arrays, running = (np.array(column).swapaxes(0, 1) for column in zip(*rows))
    returns = np.sum(arrays[2] * running, axis=1)
    return {key: array[running] for key, array in zip(KEYS, arrays)}, returns


def main(argv=None):
    parser = argparse.ArgumentParser("record.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("player", help="swing_up, or the script whose --save wrote the agent")
    add("--load", help="what --save wrote")
    add("--env-id", help="by default the one on which the agent was trained")
    add("--steps", type=int, help="per episode, at most (the environment's limit, or else 1,000)")
    add("--noise", type=float, default=0.5, help="std of noise on actions in a Box (%(default)s)")
    add("--epsilon", type=float, default=0.0, help="share of random actions (%(default)s)")
    add("--seed", type=int, default=1, help="(%(default)s)")
    add("-o", "--output", required=True, help="the .npz file to write")
    flags = parser.parse_args(argv)
    if (flags.player == "swing_up") == bool(flags.load):
        parser.error("expected a script and --load, or swing_up")
    act, env_id = swing_up, flags.env_id or SWING_UP
    if flags.load:
        agent, config = load_agent(load_script(flags.player), flags.load)
        act, env_id = agent.act, flags.env_id or config.env_id
    data, returns = record(act, env_id, 5, flags.steps, flags.noise, flags.epsilon, flags.seed)
    np.savez_compressed(flags.output, **data)
    print(f"{flags.output}: {len(data['rewards']):,} steps, returns {returns.tolist()}")


if __name__ == "__main__":
    main()
