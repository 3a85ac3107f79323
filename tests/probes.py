"""Tiny environments with known answers, as `probes:Name-v0`; a script must learn each in a second or two."""

import gymnasium as gym
import numpy as np


class Chain(gym.Env):
    """`length` steps through observations 0, 1, 2, ...; the last step pays 1, or every step if `constant`.

    It ends by termination, or (`truncate`) by truncation, or (`alternate`) by one and the other in turn.
    With `by_action` a step pays for the action instead: Discrete 1 if the action is 1, Box -(action - 0.5)^2.
    """

    def __init__(
        self,
        length=1,
        constant=False,
        truncate=False,
        alternate=False,
        by_action=False,
        box=False,
        low=-1.0,
        high=1.0,
    ):
        self.length, self.constant, self.truncate, self.alternate = length, constant, truncate, alternate
        self.by_action, self.box, self.episode, self.executed = by_action, box, -1, []
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gym.spaces.Box(low, high, (1,)) if box else gym.spaces.Discrete(2)

    def observation(self):
        return np.array([self.step_number, self.episode if self.alternate else 1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.episode = 0, self.episode + 1
        return self.observation(), {}

    def step(self, action):
        self.executed.append(action)
        self.step_number += 1
        end = self.step_number == self.length
        if self.by_action:
            reward = -float((action[0] - 0.5) ** 2) if self.box else float(action == 1)
        else:
            reward = float(end or self.constant)
        truncate = self.episode % 2 == 1 if self.alternate else self.truncate
        return self.observation(), reward, end and not truncate, end and truncate, {}


class Lengths(Chain):
    """Chains of 2 to 8 steps, each of which pays 1; the even ones terminate, the odd ones are truncated."""

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.length = self.np_random.integers(2, 9)
        self.truncate = self.length % 2 == 1
        return result


class Broken(gym.Env):
    """Observations, or rewards, become NaN at step `at`."""

    def __init__(self, at=20, box=False, reward=False):
        self.at, self.number, self.reward = at, 0, reward
        self.observation_space = gym.spaces.Box(-1, 1, (2,))
        self.action_space = gym.spaces.Box(-1, 1, (1,)) if box else gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.number += 1
        value = np.nan if self.number >= self.at else 0.0
        obs = np.full(2, 0.0 if self.reward else value, np.float32)
        return obs, value if self.reward else 0.0, False, False, {}


class Spaces(gym.Env):
    """Any two spaces: what a script can't handle, it must say so."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


def register(name, entry_point, **kwargs):
    """Register once, however often the module is imported."""
    if f"{name}-v0" not in gym.registry:
        limit = kwargs.pop("max_episode_steps", None)
        gym.register(f"{name}-v0", entry_point, max_episode_steps=limit, kwargs=kwargs, order_enforce=False,
                     disable_env_checker=True)  # fmt: skip


FLAT, DISCRETE, BOX = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (1,))
for suffix, box in ("", False), ("Box", True):
    register(f"Constant{suffix}", Chain, constant=True, box=box)
    register(f"ByAction{suffix}", Chain, by_action=True, box=box)
    register(f"TwoAhead{suffix}", Chain, length=3, box=box)
    register(f"Truncated{suffix}", Chain, length=4, constant=True, truncate=True, box=box)
    register(f"Terminated{suffix}", Chain, length=4, constant=True, box=box)
    register(f"Alternating{suffix}", Chain, length=3, alternate=True, box=box)
    register(f"Lengths{suffix}", Lengths, constant=True, box=box)
    register(f"Endless{suffix}", Chain, length=10_000, box=box)
    register(f"Limited{suffix}", Chain, length=10_000, box=box, max_episode_steps=5)
    register(f"Broken{suffix}", Broken, box=box)
    register(f"BrokenReward{suffix}", Broken, box=box, reward=True)
register("WideBox", Chain, length=5, by_action=True, box=True, low=-2.0, high=6.0)
register(
    "Image", Spaces, observation_space=gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), action_space=DISCRETE
)
register("DictObservation", Spaces, observation_space=gym.spaces.Dict(a=FLAT), action_space=DISCRETE)
register("DiscreteObservation", Spaces, observation_space=DISCRETE, action_space=DISCRETE)
register("MultiDiscreteAction", Spaces, observation_space=FLAT, action_space=gym.spaces.MultiDiscrete([2, 3]))
register("DiscreteFromOne", Spaces, observation_space=FLAT, action_space=gym.spaces.Discrete(2, start=1))
register("MatrixAction", Spaces, observation_space=FLAT, action_space=gym.spaces.Box(-1, 1, (2, 2)))
register(
    "UnboundedAction", Spaces, observation_space=FLAT, action_space=gym.spaces.Box(-np.inf, np.inf, (1,))
)
