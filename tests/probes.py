"""Tiny environments with known answers: `probes:Name-v0`, or NameBox for actions in a Box."""
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Chain(gym.Env):
    """Walks through the observations (0, episode), (1, episode), ... until it ends.

    It ends by termination, truncation, both in turn, or "any" of the two after 2 to 8 steps. It
    pays for the last step ("end"), each step, or an "action": 1, or 3/4 of the way up in a Box."""
    def __init__(self, action_space, length=1, ends="terminated", pays="end", unit=1.0):
        self.length, self.ends, self.pays, self.unit = length, ends, pays, unit
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,)), action_space
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.episode = 0, self.episode + 1
        self.truncates = self.ends == "truncated" or self.ends == "both" and self.episode % 2
        if self.ends == "any":
            self.length = self.np_random.integers(2, 9)
            self.truncates = self.length % 2
        return self.observation(), {}

    def observation(self):
        return np.array([self.number, self.episode if self.ends == "both" else 1], np.float32)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.number += 1
        end = self.number == self.length
        reward = float(end or self.pays == "step")
        if self.pays == "action" and isinstance(self.action_space, Box):
            best = self.action_space.low / 4 + self.action_space.high * 3 / 4
            reward = -float(np.square(action - best).sum())
        elif self.pays == "action":
            reward = float(action == 1)
        flags = end and not self.truncates, end and bool(self.truncates)
        return self.observation(), self.unit * reward, *flags, {}


class Dice(Chain):
    """Draws from NumPy's global generator, as environments should not."""
    def observation(self):
        return np.random.rand(2).astype(np.float32)


class Vector(SyncVectorEnv):
    """Lengths side by side. Returns the same arrays at each step, and 0 and 1 as flags."""
    def __init__(self, num_envs, action_space, mode=AutoresetMode.NEXT_STEP):
        envs = [lambda: Chain(action_space, ends="any", pays="step")] * num_envs
        super().__init__(envs, copy=False, autoreset_mode=mode or AutoresetMode.NEXT_STEP)
        self.arrays = np.zeros(num_envs), np.zeros(num_envs, int), np.zeros(num_envs, int)
        if mode is None:
            del self.metadata["autoreset_mode"]

    def step(self, action):
        obs, *arrays, info = super().step(action)
        for ours, array in zip(self.arrays, arrays):
            ours[:] = array
        return obs, *self.arrays, info


FLAT, ACTIONS = Box(-1, 1, (2,)), {"": Discrete(2), "Box": Box(-1, 1, (1,))}
FAR, TWO = Box(10, 20, (1,)), Box(np.float32([-1, 10]), np.float32([1, 20]))
PROBES = {
    "ByActions": dict(pays="action", length=4, ends="truncated"),
    "Ahead": dict(length=3), "Both": dict(length=3, ends="both"),
    "Truncated": dict(pays="step", length=4, ends="truncated"),
    "Endless": dict(pays="step", length=np.inf), "Lengths": dict(pays="step", ends="any"),
    "Hundreds": dict(pays="step", ends="any", unit=100.0)}


def register(name, entry_point, space, vector=None, limit=None, **kwargs):
    gym.register(f"{name}-v0", entry_point, vector_entry_point=vector, max_episode_steps=limit,
                 disable_env_checker=True, kwargs=dict(action_space=space, **kwargs))


for kind, space in ACTIONS.items():
    for name, kwargs in PROBES.items():
        register(name + kind, Chain, space, **kwargs)
    register(f"Limit6{kind}", Chain, space, limit=6, length=np.inf)
    register(f"Limit250{kind}", Chain, space, limit=250, length=np.inf)
    register(f"Dice{kind}", Dice, space, length=4)
    register(f"Vector{kind}", None, space, vector=Vector)
    register(f"NoMode{kind}", None, space, vector=Vector, mode=None)
    register(f"SameStep{kind}", None, space, vector=Vector, mode=AutoresetMode.SAME_STEP)
register("FarBox", Chain, FAR, length=2, pays="action")
register("TwoBox", Chain, TWO, length=2, pays="action")
