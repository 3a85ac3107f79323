"""Tiny environments with known answers, `probes:Name-v0`; those that end in Box take a Box of actions."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Chain(gym.Env):
    """Walks through the observations (0, episode), (1, episode), ... and ends after `length` steps.

    It ends by termination, by truncation, or by one and the other in turn ("both").
    It pays 1 for the last step ("end"), for each ("step"), or by the action: Discrete 1 if it is 1, Box less
    the squared distance to 3/4 of the way from its lower bound to its upper one; or NaN from step 40 on.
    """

    def __init__(self, action_space, length=1, ends="terminated", pays="end"):
        self.length, self.ends, self.pays, self.episode, self.steps = length, ends, pays, -1, 0
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,)), action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.episode = 0, self.episode + 1
        return self.observation(), {}

    def observation(self):
        return np.array([self.number, self.episode if self.ends == "both" else 1], np.float32)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.number, self.steps = self.number + 1, self.steps + 1
        end = self.number == self.length
        reward = float(end or self.pays == "step")
        if self.pays == "action" and isinstance(self.action_space, Box):
            best = self.action_space.low / 4 + self.action_space.high * 3 / 4
            reward = -float(np.square(action - best).sum())
        elif self.pays == "action":
            reward = float(action == 1)
        elif self.pays == "nan" and self.steps >= 40:
            reward = np.nan
        truncated = self.ends == "truncated" or self.ends == "both" and self.episode % 2 == 1
        return self.observation(), reward, end and not truncated, end and truncated, {}


class Lengths(Chain):
    """Episodes of 2 to 8 steps that pay 1 each. The even ones terminate, the odd ones are truncated."""
    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.length = self.np_random.integers(2, 9)
        self.ends = "truncated" if self.length % 2 else "terminated"
        return result


class Spaces(gym.Env):
    """Any two spaces."""
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


def register(name, entry_point, **kwargs):
    """Under the name `name`-v0."""
    gym.register(f"{name}-v0", entry_point, order_enforce=False, disable_env_checker=True, kwargs=kwargs)


FLAT, ONE, IMAGE = Box(-1, 1, (2,)), Box(-1, 1, (1,)), Box(0, 255, (4, 4, 3), np.uint8)
BOXES = {
    "Far": Box(10, 20, (1,)),
    "Odd": Box(-4.6, 2.7, (1,)),  # the upper bound is easily missed by one rounding step
    "Double": Box(-1, 1, (1,), np.float64),
    "Whole": Box(0, 7, (1,), np.int64),
    "Two": Box(np.array([-1, 10], np.float32), np.array([1, 20], np.float32)),
}
for suffix, space in ("", Discrete(2)), ("Box", ONE):
    register(f"Constant{suffix}", Chain, action_space=space)
    register(f"ByAction{suffix}", Chain, action_space=space, pays="action")
    register(f"ByActions{suffix}", Chain, action_space=space, pays="action", length=4, ends="truncated")
    register(f"Ahead{suffix}", Chain, action_space=space, length=3)
    register(f"Terminated{suffix}", Chain, action_space=space, pays="step", length=4)
    register(f"Truncated{suffix}", Chain, action_space=space, pays="step", length=4, ends="truncated")
    register(f"Both{suffix}", Chain, action_space=space, length=3, ends="both")
    register(f"Endless{suffix}", Chain, action_space=space, pays="step", length=np.inf)
    register(f"Lengths{suffix}", Lengths, action_space=space, pays="step")
    register(f"Broken{suffix}", Chain, action_space=space, length=4, pays="nan")
    register(f"Image{suffix}", Spaces, observation_space=IMAGE, action_space=space)
    register(f"DictObs{suffix}", Spaces, observation_space=Dict(a=FLAT), action_space=space)
for name, space in BOXES.items():
    register(f"{name}Box", Chain, action_space=space, pays="action", length=2)
for space in Discrete(2), ONE, MultiDiscrete([2, 3]):
    register(f"{type(space).__name__}Action", Spaces, observation_space=FLAT, action_space=space)
register("ShiftedAction", Spaces, observation_space=FLAT, action_space=Discrete(2, start=1))
register("UnboundedAction", Spaces, observation_space=FLAT, action_space=Box(-np.inf, np.inf, (1,)))
