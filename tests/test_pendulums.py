"""The pendulums: the same bits as pybullet_envs_gymnasium's, rewards, and Gymnasium's rules.

`python tests/test_pendulums.py` records pendulum_reference.npz, short episodes of that package."""
import importlib
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pybullet = pytest.importorskip("pybullet")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pendulums = importlib.import_module("demos.pendulums")
RECORDED = Path(__file__).with_name("pendulum_reference.npz")
NAMES = {"single": "InvertedPendulum", "double": "InvertedDoublePendulum",
         "swingup": "InvertedPendulumSwingup"}
SPARSE = {task: f"demos.pendulums:{name}PyBulletSparseEnv-v0" for task, name in NAMES.items()}
DENSE = {task: f"demos.pendulums:{name}PyBulletEnv-v0" for task, name in NAMES.items()}
each_task = pytest.mark.parametrize("task", NAMES)


def drawing(angles):
    """A random generator that draws what it is told."""
    return SimpleNamespace(uniform=lambda low, high, size=None: angles if size else angles[0])


def play(env, actions):
    """Observations, the first one included, rewards, and whether it has fallen."""
    first, _ = env.reset()
    obs, reward, terminated, *_ = zip(*(env.step(action) for action in actions))
    return np.array([first, *obs]), np.array(reward), np.array(terminated)


def record(task, seed=0):
    """50 steps of the package's pendulum, also past its end."""
    env = gym.make(f"pybullet_envs_gymnasium:{NAMES[task]}BulletEnv-v0").unwrapped
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-0.1, 0.1, 2 if task == "double" else 1)
    actions = rng.uniform(-0.5, 1.3, (50, 1))
    env.seed, env.robot.np_random = lambda seed=None: None, drawing(angles)
    return angles, actions, *play(env, actions)


def replay(task, angles, actions):
    """The same by our pendulum."""
    env = pendulums.PendulumEnv(task, sparse=False)
    env.np_random = drawing(angles)
    return play(env, actions)


@each_task
@pytest.mark.parametrize("source", ["recorded", "package"])
def test_moves_like_the_package_to_the_last_bit(task, source):
    if source == "package":
        pytest.importorskip("pybullet_envs_gymnasium")
        angles, actions, *theirs = record(task, seed=1)
    else:
        with np.load(RECORDED) as file:
            angles, actions, *theirs = (file[f"{task} {i}"] for i in range(5))
    rounding = 0 if sys.platform == "linux" else 1e-3  # another compiler may round differently
    obs, reward, terminated = replay(task, angles, actions)
    assert obs.dtype == np.float32 and obs == pytest.approx(theirs[0], rel=rounding, abs=rounding)
    assert terminated.tolist() == theirs[2].tolist() and terminated.any() == (task != "swingup")
    end = [*terminated, True].index(True)  # rewards are compared up to its fall
    assert reward[:end] == pytest.approx(theirs[1][:end], rel=rounding, abs=rounding)


@pytest.mark.parametrize("env_id, threshold, obs_dim", [
    (SPARSE["single"], 475, 5), (SPARSE["double"], 950, 9), (SPARSE["swingup"], 850, 5),
    (DENSE["single"], 950, 5), (DENSE["double"], 9100, 9), (DENSE["swingup"], 800, 5)])
@pytest.mark.filterwarnings("error", "ignore:.*infinity")
def test_follows_the_rules_of_gymnasium(env_id, threshold, obs_dim):
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=3)
    check_env(env.unwrapped, skip_render_check=True)
    assert (env.spec.reward_threshold, env.spec.max_episode_steps) == (threshold, 1000)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (obs_dim,))
    assert env.action_space == gym.spaces.Box(-1, 1, (1,))
    assert type(envs) is pendulums.PendulumVectorEnv and envs.max_episode_steps == 1000
    assert (env.reset(seed=7)[0] == envs.reset(seed=7)[0][0]).all()


@pytest.mark.parametrize("task, steps, force", [
    ("single", 12, 0.5), ("double", 12, 0.5),  # none falls so soon
    ("swingup", 300, 3.0)])  # the cart gets to the ends of its rail
def test_many_in_one_world_move_like_one_alone(task, steps, force):
    many, rng = pendulums.PendulumVectorEnv(3, task), np.random.default_rng(5)
    angles = rng.uniform(-0.1, 0.1, (3, 2 if task == "double" else 1))
    actions = rng.uniform(-force, force, (steps, 3, 1))
    many.np_random = np.random.default_rng(5)
    together, *_ = play(many, actions)
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


@each_task
def test_step_after_the_end_only_resets(task):
    envs, ends = gym.make_vec(DENSE[task], num_envs=6, max_episode_steps=30), 0
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


def test_single_is_paid_every_200th_step_and_ends_after_1000():
    envs, steps = gym.make_vec(SPARSE["single"], num_envs=1), []
    obs, _ = envs.reset(seed=0)
    for _ in range(1000):  # a linear controller holds the pole up
        push = np.clip(obs @ [0.3, 0.5, 0, 10, 2], -1, 1)
        obs, *rest, _ = envs.step(push[:, None])
        steps.append(np.ravel(rest))
    reward, terminated, truncated = np.transpose(steps)
    assert reward.tolist() == ([0.0] * 199 + [100.0]) * 5
    assert not terminated.any() and np.flatnonzero(truncated).tolist() == [999]


@pytest.mark.parametrize("task, angle, speed, paid", [
    ("double", 0.14, 0, 1), ("double", 0.16, 0, 0),  # 0.9 cos >= 0.89
    ("swingup", 0.31, 0, 1), ("swingup", 0.325, 0, 0), ("swingup", np.pi, 0, 0),  # cos > 0.95
    ("swingup", 0, 0.9, 1), ("swingup", 0, 1.2, 0), ("swingup", 0, -1.2, 0)])
def test_double_and_swingup_are_paid_while_up(task, angle, speed, paid):
    env = gym.make(SPARSE[task]).unwrapped
    env.reset(seed=0)
    hinge = [np.cos(angle), np.sin(angle), speed]
    env.set_state([0, 0, *hinge] if task == "swingup" else [0, 0, 0, *hinge, 1, 0, 0])
    _, reward, terminated, *_ = env.step(np.zeros(1))
    assert (reward, terminated) == (paid, False)


@each_task
def test_pictures_show_the_whole_pendulum(task):
    env = gym.make(SPARSE[task], render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    env.step(np.array([1.0]))
    image = env.render()
    assert image.dtype == np.uint8 and image.shape == (240, 320, 3) and (image != first).any()
    rows = np.flatnonzero((first != first[0, 0]).any((1, 2)))
    assert 0 < rows.min() and rows.max() < 239 and np.ptp(rows) > 60  # the cart alone has 20


def test_without_pybullet_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(ImportError, match="pip install pybullet"):
        runpy.run_path(pendulums.__file__)


if __name__ == "__main__":
    arrays = {f"{task} {i}": array for task in NAMES for i, array in enumerate(record(task))}
    np.savez_compressed(RECORDED, **arrays)
