"""The pendulums: the same bits as pybullet_envs_gymnasium's, rewards, and Gymnasium's rules.

`python tests/test_pendulums.py` records pendulum_reference.npz, short episodes of that package.
"""
import copy
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
from gymnasium.vector.utils import batch_space

pybullet = pytest.importorskip("pybullet")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pendulums = importlib.import_module("demos.pendulums")
RECORDED = Path(__file__).with_name("pendulum_reference.npz")
NAMES = {"single": "InvertedPendulum", "double": "InvertedDoublePendulum",
         "swingup": "InvertedPendulumSwingup"}
SPARSE = {task: f"demos.pendulums:{name}PyBulletSparseEnv-v0" for task, name in NAMES.items()}
DENSE = {task: f"demos.pendulums:{name}PyBulletEnv-v0" for task, name in NAMES.items()}
each_task = pytest.mark.parametrize("task", NAMES)
each_id = pytest.mark.parametrize("env_id", [*SPARSE.values(), *DENSE.values()])


def drawing(angles):
    """A random generator that draws what it is told."""
    return SimpleNamespace(uniform=lambda low, high, size=None: angles if size else angles[0])


def record(task, seed=0):
    """50 steps of the package's pendulum, also past its end."""
    env = gym.make(f"pybullet_envs_gymnasium:{NAMES[task]}BulletEnv-v0").unwrapped
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-0.1, 0.1, 2 if task == "double" else 1)
    actions = rng.uniform(-0.5, 1.3, (50, 1))
    env.seed, env.robot.np_random = lambda seed=None: None, drawing(angles)
    first, _ = env.reset()
    obs, reward, terminated, *_ = zip(*(env.step(action) for action in actions))
    return [np.array(array) for array in (angles, actions, [first, *obs], reward, terminated)]


def replay(task, angles, actions):
    """The same by our pendulum: observations, rewards, whether it has fallen."""
    env = pendulums.PendulumEnv(task, sparse=False)
    env.np_random = drawing(angles)
    first, _ = env.reset()
    obs, reward, terminated, *_ = zip(*(env.step(action) for action in actions))
    return np.array([first, *obs]), reward, terminated


def assert_moves_like(task, angles, actions, obs, reward, terminated, rounding):
    """Our pendulum does the same. Rewards are compared up to its fall."""
    our_obs, our_reward, our_terminated = replay(task, angles, actions)
    assert our_obs.dtype == np.float32
    assert our_obs == pytest.approx(obs, rel=rounding, abs=rounding)
    assert list(our_terminated) == list(terminated)
    assert any(terminated) == (task != "swingup")
    end = [*terminated, True].index(True)
    assert our_reward[:end] == pytest.approx(list(reward[:end]), rel=rounding, abs=rounding)


@each_task
def test_moves_like_the_recorded_episode_of_the_package(task):
    rounding = 0 if sys.platform == "linux" else 1e-3  # another compiler may round differently
    with np.load(RECORDED) as file:
        assert_moves_like(task, *(file[f"{task} {i}"] for i in range(5)), rounding)


@each_task
@pytest.mark.filterwarnings("ignore")
def test_equal_to_the_package_to_the_last_bit(task):
    pytest.importorskip("pybullet_envs_gymnasium")
    for seed in range(10):
        assert_moves_like(task, *record(task, seed), rounding=0)


@pytest.mark.parametrize("task, sparse, threshold, obs_dim", [
    ("single", True, 475, 5), ("double", True, 950, 9), ("swingup", True, 850, 5),
    ("single", False, 950, 5), ("double", False, 9100, 9), ("swingup", False, 800, 5)])
def test_follows_the_rules_of_gymnasium(task, sparse, threshold, obs_dim):
    env_id = SPARSE[task] if sparse else DENSE[task]
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert [str(w.message) for w in caught if "infinity" not in str(w.message)] == []
    assert (env.spec.reward_threshold, env.spec.max_episode_steps) == (threshold, 1000)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (obs_dim,))
    assert env.action_space == gym.spaces.Box(-1, 1, (1,))
    assert envs.observation_space == batch_space(env.observation_space, 3)
    assert envs.action_space == batch_space(env.action_space, 3)
    assert type(envs) is pendulums.PendulumVectorEnv and envs.max_episode_steps == 1000
    assert (env.reset(seed=7)[0] == envs.reset(seed=7)[0][0]).all()


@pytest.mark.parametrize("task, steps, force", [
    ("single", 12, 0.5), ("double", 12, 0.5),  # none falls so soon
    ("swingup", 300, 3.0)])  # the cart gets to the ends of its rail
def test_many_in_one_world_move_like_one_alone(task, steps, force):
    many, rng = pendulums.PendulumVectorEnv(3, task), np.random.default_rng(5)
    angles = rng.uniform(-0.1, 0.1, (3, 2 if task == "double" else 1))
    actions = rng.uniform(-force, force, (steps, 3, 1))
    first = many.reset(seed=5)[0]
    together = np.array([first, *(many.step(action)[0] for action in actions)])
    for i in range(3):
        assert (replay(task, angles[i], actions[:, i])[0] == together[:, i]).all()


@each_task
def test_starts_at_rest_and_within_a_tenth_of_a_radian(task):
    obs, _ = gym.make_vec(SPARSE[task], num_envs=100).reset(seed=0)
    cos, sin, speed = obs[:, -3:].T  # of the last hinge
    if task == "swingup":  # measured from where it hangs
        cos, sin = -cos, -sin
    angle = np.arctan2(sin, cos)
    assert (obs[:, :2] == 0).all() and (speed == 0).all()
    assert -0.1002 < angle.min() < -0.09 and 0.09 < angle.max() < 0.1002


@each_id
def test_step_after_the_end_only_resets(env_id):
    envs, ends = gym.make_vec(env_id, num_envs=6, max_episode_steps=30), 0
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    envs.reset(seed=5)
    done = np.zeros(6, bool)
    for action in np.random.default_rng(0).uniform(-1, 1, (200, 6, 1)):
        obs, reward, terminated, truncated, _ = envs.step(action)
        assert not (terminated | truncated | (reward != 0))[done].any()
        assert (obs[done][:, :2] == 0).all() and (obs[done][:, -1] == 0).all()
        done = terminated | truncated
        ends += done.sum()
    assert 20 < ends < 70


@each_task
def test_arrays_are_not_used_again_and_the_time_limit_may_be_none(task):
    envs = gym.make_vec(DENSE[task], num_envs=2, max_episode_steps=None)
    first = [envs.reset(seed=0)[0], *envs.step(np.ones((2, 1)))[:4]]
    kept = copy.deepcopy(first)
    for _ in range(20):
        *_, truncated, _ = envs.step(np.ones((2, 1)))
    assert all((old == new).all() for old, new in zip(kept, first)) and not truncated.any()


@pytest.mark.parametrize("env_id, rewards", [
    (SPARSE["single"], ([0.0] * 199 + [100.0]) * 5), (DENSE["single"], [1.0] * 1000)])
def test_single_is_paid_every_200th_step_or_each_step_and_ends_after_1000(env_id, rewards):
    envs, steps = gym.make_vec(env_id, num_envs=1), []
    obs, _ = envs.reset(seed=0)
    for _ in range(1000):  # a linear controller holds the pole up
        push = np.clip(obs @ [0.3, 0.5, 0, 10, 2], -1, 1)
        obs, *rest, _ = envs.step(push[:, None])
        steps.append([array[0] for array in rest])
    reward, terminated, truncated = map(list, zip(*steps))
    assert reward == rewards
    assert not any(terminated) and truncated == [False] * 999 + [True]


@pytest.mark.parametrize("task, angle, speed, paid", [
    ("double", 0.14, 0, 1), ("double", -0.14, 0, 1), ("double", 0.16, 0, 0),  # 0.9 cos >= 0.89
    ("swingup", 0.31, 0, 1), ("swingup", -0.31, 0, 1), ("swingup", 0.325, 0, 0),  # cos > 0.95
    ("swingup", 0, 0.9, 1), ("swingup", 0, 1.2, 0), ("swingup", 0, -1.2, 0),
    ("swingup", np.pi, 0, 0)])
def test_double_and_swingup_are_paid_while_up(task, angle, speed, paid):
    env = gym.make(SPARSE[task]).unwrapped
    env.reset(seed=0)
    hinge = [np.cos(angle), np.sin(angle), speed]
    env.set_state([0, 0, *hinge] if task == "swingup" else [0, 0, 0, *hinge, 1, 0, 0])
    _, reward, terminated, *_ = env.step(np.zeros(1))
    assert (reward, terminated) == (paid, False)


def test_dense_swingup_pays_the_cosine_until_it_is_truncated_after_1000_steps():
    envs = gym.make_vec(DENSE["swingup"], num_envs=2)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-3, 3, (1000, 2, 1))
    obs, reward, terminated, truncated, _ = zip(*(envs.step(action) for action in actions))
    assert np.array(reward) == pytest.approx(np.array(obs)[..., 2])
    assert not np.any(terminated)
    assert np.argwhere(truncated).tolist() == [[999, 0], [999, 1]]


@each_task
def test_set_state_puts_a_pendulum_where_an_observation_was_made(task):
    one, other = gym.make(DENSE[task]).unwrapped, gym.make(DENSE[task]).unwrapped
    obs, _ = one.reset(seed=0)
    other.reset(seed=1)
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 1)):
        other.set_state(obs)
        obs, *_ = one.step(action)
        assert other.step(action)[0] == pytest.approx(obs, abs=1e-4)


@each_task
def test_pictures_show_the_whole_pendulum_and_need_no_screen(task):
    env = gym.make(SPARSE[task], render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    for _ in range(15):
        env.step(np.array([1.0]))
    image = env.render()
    assert image.dtype == np.uint8 and image.shape == (240, 320, 3) and (image != first).any()
    rows = np.flatnonzero((first != first[0, 0]).any((1, 2)))
    assert 0 < rows.min() and rows.max() < 239 and np.ptp(rows) > 60  # the cart alone has 20


def test_worlds_are_apart_and_close_frees_them():
    one, two = gym.make(SPARSE["single"]).unwrapped, pendulums.PendulumVectorEnv(2, "double")
    assert [pybullet.getNumBodies(**envs.world) for envs in (one.envs, two)] == [1, 2]
    one.close()
    assert [pybullet.isConnected(**envs.world) for envs in (one.envs, two)] == [0, 1]


def test_without_pybullet_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(ImportError, match="pip install pybullet"):
        runpy.run_path(pendulums.__file__)


if __name__ == "__main__":
    arrays = {f"{task} {i}": array for task in NAMES for i, array in enumerate(record(task))}
    np.savez_compressed(RECORDED, **arrays)
