"""Record demonstrations, D4RL's keys in an .npz: few and imperfect on purpose, by an agent or a rule.

`python demos/record.py ppo.py --load x.pt --noise 0.5 -o demos/x.npz` plays the greedy agent with noise.
`python demos/record.py swing -o demos/MountainCarContinuous-v0.npz` pushes the car the way it rolls.
Same arguments, same machine: same bits.
"""
import argparse
import importlib
import os
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch

def swing(obs):
    """MountainCarContinuous-v0's rule: full force in the direction of the velocity."""
    return np.where(obs[:, 1:] < 0, -1, 1).astype(np.float32)

def load_agent(script, path):
    """The agent that `script --save path` wrote, and the config it was trained with."""
    folder, name = os.path.split(os.path.abspath(script))
    sys.path.insert(0, folder)  # for plug-in ids such as sac:..., too
    module = importlib.import_module(os.path.splitext(name)[0])
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = module.Config(**{**saved["config"], "device": "cpu"})
    network = next(getattr(module, n) for n in ("ActorCritic", "QNetwork", "Actor") if hasattr(module, n))
    agent = network(config)
    agent.load_state_dict(saved[f"{name} {config.env_id}"])
    return agent, config

def record(act, env_id, episodes, noise, epsilon, seed):
    """Play `episodes` side by side: D4RL's arrays, one episode after the other, and the returns."""
    torch.set_num_threads(1)
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
        steps.append((obs, action, reward, terminated, truncated, running))
        running, obs = running & ~(terminated | truncated), next_obs
    envs.close()
    *arrays, running = (np.array(x).swapaxes(0, 1) for x in zip(*steps))  # (episodes, steps, ...)
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    data = {key: array[running] for key, array in zip(keys, arrays)}
    data["rewards"] = data["rewards"].astype(np.float32)
    return data, (arrays[2] * running).sum(1)

def main(argv=None):
    parser = argparse.ArgumentParser("record.py", argparse.SUPPRESS, __doc__.splitlines()[0])
    parser.add_argument("script", help="the script that --load is a checkpoint of; or swing")
    parser.add_argument("--load", help="what the script's --save wrote")
    parser.add_argument("--env-id", help="default: the one that the agent was trained on")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="standard deviation added to each action")
    parser.add_argument("--epsilon", type=float, default=0.0, help="probability of a random action instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", required=True)
    flags = parser.parse_args(argv)
    if flags.episodes < 1 or flags.seed < 0:
        parser.error("--episodes must be at least 1 and --seed at least 0")
    if not 0 <= flags.noise < np.inf or not 0 <= flags.epsilon <= 1:
        parser.error("--noise must be a number from 0 and --epsilon one from 0 to 1")
    try:
        if flags.script != "swing" and not flags.load:
            raise ValueError("expected a checkpoint of that script")
        if flags.script == "swing":
            agent, config = SimpleNamespace(act=swing), SimpleNamespace(env_id="MountainCarContinuous-v0")
        else:
            agent, config = load_agent(flags.script, flags.load)
        env_id = flags.env_id or config.env_id
        data, returns = record(agent.act, env_id, flags.episodes, flags.noise, flags.epsilon, flags.seed)
        np.savez_compressed(flags.output, **data)
    except Exception as error:
        what = f"{flags.script} --load {flags.load}, {flags.output}: {type(error).__name__}: {error}"
        parser.error(what.splitlines()[0])
    print(f"{flags.output}: {flags.episodes} episodes of {env_id}, {len(data['rewards']):,} steps, "
          f"mean return {returns.mean():.1f} ({', '.join(f'{x:g}' for x in returns)})")

if __name__ == "__main__":
    main()
