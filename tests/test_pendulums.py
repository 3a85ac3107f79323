"""The pendulums: the same bits as pybullet_envs_gymnasium's, the rewards, and the rules of Gymnasium.

`python tests/test_pendulums.py` records pendulum_reference.npz, short episodes of that package.
"""

import importlib
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pybullet = pytest.importorskip("pybullet")
pendulums = importlib.import_module("demos.pendulums")
RECORDED = Path(__file__).with_name("pendulum_reference.npz")
IDS = [f"demos.pendulums:Inverted{double}PendulumPyBullet{sparse}Env-v0"
       for double in ("", "Double") for sparse in ("Sparse", "")]
each_id = pytest.mark.parametrize("env_id", IDS)
single_and_double = pytest.mark.parametrize("double", [False, True])


def drawing(angles):
    """A random generator that draws what it is told."""
    return SimpleNamespace(uniform=lambda low, high, size=None: angles if size else angles[0])


def record(double, seed=0):
    """50 steps of the package's pendulum, on past its end: angles, actions, observations, rewards, ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("pybullet_envs_gymnasium")
        env = gym.make(f"Inverted{'Double' * double}PendulumBulletEnv-v0").unwrapped
    rng = np.random.default_rng(seed)
    angles, actions = rng.uniform(-0.1, 0.1, 1 + double), rng.uniform(-0.5, 1.3, (50, 1))
    env.seed, env.robot.np_random = lambda seed=None: None, drawing(angles)
    first, _ = env.reset()
    obs, reward, terminated, *_ = zip(*(env.step(action) for action in actions))
    env.close()
    return [np.array(array) for array in (angles, actions, [first, *obs], reward, terminated)]


def replay(double, angles, actions):
    """The same by our pendulum."""
    envs, steps = pendulums.PendulumVectorEnv(1, double, sparse=False), []
    envs.np_random = drawing(angles)
    first = envs.reset()[0][0]
    for action in actions:
        envs.done[:] = False
        steps.append([array[0] for array in envs.step(action[None])[:3]])
    obs, reward, terminated = map(np.array, zip(*steps))
    return np.array([first, *obs]), reward, terminated


def assert_moves_like(double, angles, actions, obs, reward, terminated, rounding):
    """Our pendulum does the same, rewards up to its fall."""
    our_obs, our_reward, our_terminated = replay(double, angles, actions)
    end = int(terminated.argmax())
    assert our_obs.dtype == np.float32 and our_obs == pytest.approx(obs, rel=rounding, abs=rounding)
    assert end > 3 and our_terminated.tolist() == terminated.tolist()
    assert our_reward[:end] == pytest.approx(reward[:end], abs=max(rounding, 1e-9))


@single_and_double
def test_moves_like_the_recorded_episode_of_the_package(double):
    rounding = 0 if sys.platform == "linux" else 1e-3  # another compiler may round differently
    with np.load(RECORDED) as file:
        assert_moves_like(double, *(file[f"{double} {i}"] for i in range(5)), rounding)


@single_and_double
def test_equal_to_the_package_to_the_last_bit(double):
    pytest.importorskip("pybullet_envs_gymnasium")
    for seed in range(10):
        assert_moves_like(double, *record(double, seed), rounding=0)
    with np.load(RECORDED) as file:
        for i, array in enumerate(record(double)):
            assert array == pytest.approx(file[f"{double} {i}"], rel=1e-3, abs=1e-3)


@each_id
def test_follows_the_rules_of_gymnasium(env_id):
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert [str(w.message) for w in caught if "infinity" not in str(w.message)] == []
    double, sparse = "Double" in env_id, "Sparse" in env_id
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (9 if double else 5,))
    assert env.action_space == gym.spaces.Box(-1, 1, (1,)) and env.spec.max_episode_steps == 1000
    assert env.spec.reward_threshold == ((950 if sparse else 9100) if double else (475 if sparse else 950))
    assert type(envs) is pendulums.PendulumVectorEnv and envs.max_episode_steps == 1000
    assert (envs.double, envs.sparse, envs.num_envs) == (double, sparse, 3)


@each_id
def test_one_of_gym_make_is_a_vectors_only_one(env_id):
    """The same starts, with a seed and without, motion, reward and end."""
    one, many = gym.make(env_id).unwrapped, gym.make_vec(env_id, num_envs=1)
    for seed in (7, None, 8):
        assert (one.reset(seed=seed)[0] == many.reset(seed=seed)[0][0]).all()
        for action in np.random.default_rng(3).uniform(-1, 1, (40, 1)):
            many.done[:] = False
            (obs, *rest, _), (many_obs, *many_rest, _) = one.step(action), many.step(action[None])
            assert (obs == many_obs[0]).all() and rest == [x[0] for x in many_rest]
    assert [type(x) for x in rest] == [float, bool, bool]


@single_and_double
def test_many_in_one_world_move_like_one_alone(double):
    many, rng = pendulums.PendulumVectorEnv(3, double), np.random.default_rng(5)
    angles, actions = rng.uniform(-0.1, 0.1, (3, 1 + double)), rng.uniform(-0.5, 0.5, (12, 3, 1))
    first = many.reset(seed=5)[0]
    together = np.array([first, *(many.step(action)[0] for action in actions)])  # none falls so soon
    for i in range(3):
        assert (replay(double, angles[i], actions[:, i])[0] == together[:, i]).all()


@each_id
def test_step_after_the_end_only_resets(env_id):
    envs, ends = gym.make_vec(env_id, num_envs=6), 0
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    obs, _ = envs.reset(seed=5)
    assert (obs[:, :2] == 0).all() and (obs[:, -1] == 0).all()  # the cart in the middle, everything at rest
    for action in np.random.default_rng(0).uniform(-1, 1, (200, 6, 1)):
        done = envs.done
        obs, reward, terminated, truncated, _ = envs.step(action)
        assert not (terminated | truncated | (reward != 0))[done].any() and (obs[done][:, :2] == 0).all()
        ends += terminated.sum()
    assert 20 < ends < 70


@pytest.mark.parametrize("env_id", IDS[:2])
def test_single_is_paid_every_200th_step_or_each_step_and_ends_after_1000(env_id):
    envs, steps = gym.make_vec(env_id, num_envs=1), []
    obs, _ = envs.reset(seed=0)
    for _ in range(1000):  # a linear controller holds the pole up
        push = np.clip(obs @ [0.3, 0.5, 0, 10, 2], -1, 1)
        obs, *rest, _ = envs.step(push[:, None])
        steps.append([array[0] for array in rest])
    rewards, terminated, truncated = map(list, zip(*steps))
    assert rewards == (([0.0] * 199 + [100.0]) * 5 if "Sparse" in env_id else [1.0] * 1000)
    assert not any(terminated) and truncated == [False] * 999 + [True]


def test_double_is_paid_while_its_tip_is_at_089_or_above():
    envs, close = gym.make_vec(IDS[2], num_envs=8), 0
    for seed in range(5):
        envs.reset(seed=seed)
        for _ in range(20):
            fresh = envs.done
            _, reward, *_ = envs.step(np.zeros((8, 1)))
            height = np.array([pybullet.getLinkState(body, 5, **envs.world)[0][2] for body in envs.bodies])
            assert (reward == (height >= 0.89))[~fresh].all()
            close += np.sum((np.abs(height - 0.89) < 0.01) & ~fresh)
    assert close > 20


@pytest.mark.parametrize("env_id", IDS[::2])
def test_rgb_array_needs_no_screen(env_id):
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    for _ in range(15):
        env.step(np.array([1.0]))
    image = env.render()
    assert image.dtype == np.uint8 and image.shape == (240, 320, 3) and (image != first).any()


def test_worlds_are_apart_and_close_frees_them():
    several = [pendulums.PendulumVectorEnv(3), pendulums.PendulumVectorEnv(2, double=True)]
    assert [pybullet.getNumBodies(**envs.world) for envs in several] == [3, 2]
    several[0].close()
    assert [bool(pybullet.isConnected(**envs.world)) for envs in several] == [False, True]
    env = gym.make(IDS[0])
    env.close()
    assert not pybullet.isConnected(**env.unwrapped.envs.world)


def test_without_pybullet_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(ImportError, match="pip install pybullet"):
        runpy.run_path(pendulums.__file__)


if __name__ == "__main__":
    np.savez_compressed(RECORDED, **{
        f"{double} {i}": array for double in (False, True) for i, array in enumerate(record(double))})
