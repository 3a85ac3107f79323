"""The pendulums of sac.py and pofd.py: equal to pybullet_envs_gymnasium's to the last bit."""

import importlib
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

TOP = Path(__file__).parent.parent
MODULES = [name for name in ("pofd", "sac") if (TOP / f"{name}.py").exists()]
IDS = [f"Inverted{'Double' * double}PendulumPyBulletSparseEnv-v0" for double in (False, True)]
DENSE = ["InvertedPendulumPyBulletEnv-v0", "InvertedDoublePendulumPyBulletEnv-v0"]


def pendulums(module, num_envs, double, **kwargs):
    return importlib.import_module(module).PendulumVectorEnv(num_envs, double, **kwargs)


@pytest.fixture
def register(monkeypatch):
    """Both scripts register the same ids, and the last one imported has them: import `module` (once more)."""

    def again(module):
        monkeypatch.delitem(sys.modules, module, raising=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)

    return again


class Reference:
    """pybullet_envs_gymnasium's pendulum, started from angles of our choice."""

    def __init__(self, double):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("pybullet_envs_gymnasium")
            self.env = gym.make(f"Inverted{'Double' * double}PendulumBulletEnv-v0").unwrapped

    def reset(self, angles):
        self.env.seed = lambda seed=None: None
        self.env.robot.np_random = self
        self.angles = angles
        return self.env.reset()[0]

    def uniform(self, low, high, size=None):
        assert (low, high) == (-0.1, 0.1)
        return self.angles if size else self.angles[0]

    def step(self, action):
        return self.env.step(action)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("double", [False, True])
def test_equal_to_the_last_bit(module, double):
    """80 episodes, four pendulums in one world against four worlds; they run on past their end."""
    envs = pendulums(module, 4, double)
    references = [Reference(double) for _ in range(4)]
    rng = np.random.default_rng(1)
    fallen = 0
    for episode in range(20):
        obs, _ = envs.reset(seed=episode)
        angles = np.random.default_rng(episode).uniform(-0.1, 0.1, (4, 1 + double))
        assert (np.abs(angles) <= 0.1).all()
        expected = np.stack([reference.reset(start) for reference, start in zip(references, angles)])
        assert obs.dtype == np.float32 and (obs == expected).all()
        for _ in range(400 if episode % 10 == 0 else 40):
            action = rng.uniform(-1.3, 1.3, (4, 1)).astype(np.float32) * (1 if episode % 2 else 0.1)
            envs.done[:] = False  # no restart: on past the end
            obs, reward, terminated, truncated, _ = envs.step(action)
            steps = [reference.step(a) for reference, a in zip(references, action)]
            assert (obs == np.stack([s[0] for s in steps])).all()
            assert (terminated == [s[2] for s in steps]).all() and not truncated.any()
            fallen += terminated.sum()
    assert fallen > 1_000


@pytest.mark.parametrize("double", [False, True])
def test_dense_reward_equals_the_reference(double):
    envs, reference = pendulums("sac", 1, double, sparse=False), Reference(double)
    for episode in range(20):
        envs.reset(seed=episode)
        reference.reset(np.random.default_rng(episode).uniform(-0.1, 0.1, 1 + double))
        for _ in range(20):
            action = np.array([[0.3]], np.float32)
            assert envs.step(action)[1][0] == pytest.approx(reference.step(action[0])[1], abs=1e-9)
            if envs.done[0]:
                break


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("env_id", IDS + DENSE)
def test_check_env_and_spec(module, env_id, register):
    if module == "pofd" and env_id in DENSE:
        pytest.skip("the dense ones are sac.py's alone")
    script = register(module)
    env = gym.make(f"{module}:{env_id}")
    assert type(env.unwrapped) is script.PendulumEnv
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert [str(w.message) for w in caught if "infinity" not in str(w.message)] == []
    double = "Double" in env_id
    assert env.observation_space.shape == (9 if double else 5,) and env.observation_space.dtype == np.float32
    assert env.action_space == gym.spaces.Box(-1, 1, (1,))
    assert env.spec.max_episode_steps == 1000
    thresholds = (475, 950) if env_id in IDS else (950, 9100)
    assert env.spec.reward_threshold == thresholds[double]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("env_id", IDS)
def test_rules_of_the_sparse_rewards(module, env_id, register):
    double, script = "Double" in env_id, register(module)
    envs = gym.make_vec(f"{module}:{env_id}", num_envs=6)
    assert type(envs) is script.PendulumVectorEnv
    obs, _ = envs.reset(seed=5)
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    assert (obs[:, :2] == 0).all() and (obs[:, -1] == 0).all()  # the cart in the middle, everything at rest
    rng, age, done, lengths = np.random.default_rng(0), np.zeros(6, int), np.zeros(6, bool), []
    for _ in range(400):
        obs, reward, terminated, truncated, _ = envs.step(rng.uniform(-1, 1, (6, 1)).astype(np.float32))
        age = np.where(done, 0, age + 1)
        assert not (terminated | truncated | (reward != 0))[done].any()  # a reset, whatever the action
        assert (np.abs(obs[done][:, 4 if double else 3]) < np.sin(0.1) + 1e-6).all()
        if not double:
            assert (terminated == (np.abs(np.arctan2(obs[:, 3], obs[:, 2])) > 0.2))[~done].all()
            assert (reward == 0).all()  # under random actions no pole stands for 200 steps
        done = terminated | truncated
        lengths += age[done].tolist()
    assert np.mean(lengths) == pytest.approx(31 if double else 24, abs=5)


@pytest.mark.parametrize("module", MODULES)
def test_two_hundred_steps_pay_a_hundred_and_a_thousand_end(module):
    envs = pendulums(module, 1, False, max_episode_steps=1000)
    obs, _ = envs.reset(seed=0)
    rewards = []
    while True:  # a linear controller holds the pole up
        x, v, _, sine, spin = obs[0]
        obs, reward, terminated, truncated, _ = envs.step(
            np.array([[np.clip(10 * sine + 2 * spin + 0.3 * x + 0.5 * v, -1, 1)]]),
        )
        rewards.append(reward[0])
        if terminated[0] or truncated[0]:
            break
    assert truncated[0] and not terminated[0] and len(rewards) == 1000
    assert [i + 1 for i, r in enumerate(rewards) if r] == [200, 400, 600, 800, 1000] and set(rewards) == {
        0.0,
        100.0,
    }


class Fixed:
    """A random generator that draws what it is told."""

    def __init__(self, angles):
        self.angles = angles

    def uniform(self, low, high, size):
        return self.angles


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("double", [False, True])
def test_many_in_one_world_move_like_one_alone(module, double):
    many, seeds = pendulums(module, 5, double), range(3)
    action = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 5, 1))
    for seed in seeds:
        start, _ = many.reset(seed=seed)
        angles = np.random.default_rng(seed).uniform(-0.1, 0.1, (5, 1 + double))
        together = [many.step(a)[0] for a in action]
        for i in range(5):
            alone = pendulums(module, 1, double)
            alone.reset(seed=0)
            alone.np_random = Fixed(angles[i])
            alone.done[:] = True
            assert (alone.step(action[0, :1])[0] == start[i]).all()
            for a, expected in zip(action, together):
                assert (alone.step(a[i : i + 1])[0] == expected[i]).all()
                if alone.done[0]:
                    break


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("env_id", IDS + DENSE)
def test_the_one_of_gym_make_is_a_vectors_only_one(module, env_id, register):
    """The same starts, with a seed and without, motion, reward and end; past its end it runs on."""
    if module == "pofd" and env_id in DENSE:
        pytest.skip("the dense ones are sac.py's alone")
    register(module)
    one = gym.make(f"{module}:{env_id}").unwrapped
    many = pendulums(module, 1, "Double" in env_id, **({"sparse": False} if env_id in DENSE else {}))
    actions, ends = np.random.default_rng(3).uniform(-1, 1, (3, 60, 1)), 0
    for seed, pushes in zip((7, None, 8), actions):
        assert (one.reset(seed=seed)[0] == many.reset(seed=seed)[0][0]).all()
        for action in pushes:
            many.done[:] = False
            obs, reward, terminated, truncated, _ = one.step(action)
            expected = many.step(action[None])
            assert (obs == expected[0][0]).all() and type(reward) is float and type(terminated) is bool
            assert [reward, terminated, truncated] == [expected[1][0], expected[2][0], False]
            ends += terminated
        assert reward != 0 or env_id not in DENSE
    assert ends > 10


@pytest.mark.parametrize("module", MODULES)
def test_worlds_are_apart_and_hold_nothing_but_pendulums(module):
    bullet = importlib.import_module(module).pybullet
    several = [
        pendulums(module, num_envs, double) for num_envs, double in ((3, False), (2, True), (4, False))
    ]
    assert len({envs.world["physicsClientId"] for envs in several}) == 3
    assert [bullet.getNumBodies(**envs.world) for envs in several] == [3, 2, 4]
    for envs in several:
        bases = [bullet.getBasePositionAndOrientation(body, **envs.world)[0] for body in envs.bodies]
        assert np.diff([base[1] for base in bases]) == pytest.approx(np.ones(len(bases) - 1))
    world = several.pop(0).world
    assert not bullet.isConnected(**world)  # nothing of it is left once it is not needed
    assert all(bullet.isConnected(**envs.world) for envs in several)


@pytest.mark.parametrize("env_id", IDS + DENSE)
def test_rgb_array_needs_no_screen(env_id, register):
    """The cart moves in it, and the picture is the same whichever script draws it."""
    pictures = []
    for module in [name for name in MODULES if name == "sac" or env_id in IDS]:
        register(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Gymnasium's, of a mode that is not announced
            env = gym.make(f"{module}:{env_id}", render_mode="rgb_array").unwrapped
        env.reset(seed=0)
        first = env.render()
        for _ in range(15):
            env.step(np.array([1.0], np.float32))
        image = env.render()
        assert env.render_mode == "rgb_array"
        assert image.dtype == np.uint8 and image.shape == (240, 320, 3)
        assert image.std() > 5 and (image != first).any()
        pictures.append(image)
    assert all((picture == pictures[0]).all() for picture in pictures)


@pytest.mark.parametrize("module", MODULES)
def test_double_pays_from_a_height_of_089(module):
    script, envs, close = importlib.import_module(module), pendulums(module, 8, True), 0
    for seed in range(10):
        envs.reset(seed=seed)
        for _ in range(20):
            fresh = envs.done
            _, reward, *_ = envs.step(np.zeros((8, 1)))
            tips = [script.pybullet.getLinkState(body, 5, **envs.world)[0][2] for body in envs.bodies]
            assert (reward == (np.array(tips) >= 0.89))[~fresh].all()
            close += np.sum((np.abs(np.array(tips) - 0.89) < 0.01) & ~fresh)
    assert close > 50


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("double", [False, True])
def test_a_mask_starts_some_afresh_and_leaves_the_others_alone(module, double):
    one, other = pendulums(module, 4, double), pendulums(module, 4, double)
    push, mask = np.full((4, 1), 0.3, np.float32), np.array([True, False, False, True])
    for envs in one, other:
        envs.reset(seed=1)
        for _ in range(5):
            last = envs.step(push)[0]
    now = one.reset(options={"reset_mask": mask})[0]
    assert (now[~mask] == last[~mask]).all() and (now[mask, :2] == 0).all()
    assert one.steps.tolist() == [0, 5, 5, 0]
    for _ in range(5):
        a, b = one.step(push)[0], other.step(push)[0]
        assert (a[~mask] == b[~mask]).all() and (a[mask] != b[mask]).any(1).all()


@pytest.mark.parametrize("module", MODULES)
def test_one_that_is_done_and_not_in_the_mask_starts_afresh_at_its_next_step(module):
    envs = pendulums(module, 2, False, max_episode_steps=3)
    envs.reset(seed=1)
    for _ in range(3):
        _, _, terminated, truncated, _ = envs.step(np.zeros((2, 1), np.float32))
    assert truncated.all() and not terminated.any()
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.done.tolist() == [False, True]
    obs, _, terminated, truncated, _ = envs.step(np.zeros((2, 1), np.float32))
    assert envs.steps.tolist() == [1, 0] and (obs[1, :2] == 0).all() and not (terminated | truncated).any()
