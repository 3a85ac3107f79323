"""PyBullet's inverted pendulum, double pendulum and swing-up, with sparse and with dense rewards.

A script trains on one by `python ppo.py --env-id demos.pendulums:InvertedPendulumPyBulletEnv-v0`.
Observations equal those of the package pybullet_envs_gymnasium to the last bit.
"""
import gymnasium as gym
import numpy as np

try:
    import pybullet
    import pybullet_data
except ImportError:
    raise ImportError(
        "the pendulums need pybullet: `pip install pybullet` on Linux (x86_64) with Python 3.10 "
        "or 3.11, `pip install pybullet-arm64` there with 3.12 or 3.13 and on macOS and Windows "
        "with 3.10 to 3.13; there is none for Python 3.14 or for Linux on ARM") from None

TASKS = {  # model, its slider and hinges among Bullet's joints, first angle, torque, obs_dim
    "single": ("inverted_pendulum.xml", [0, 2], 0, 100, 5),
    "double": ("inverted_double_pendulum.xml", [0, 2, 4], 0, 200, 9),
    "swingup": ("inverted_pendulum.xml", [0, 2], 3.1415, 100, 5),
}


class PendulumVectorEnv(gym.vector.VectorEnv):
    """N pendulums, 1 m apart in one Bullet world, so that one physics step moves them all.

    In "single" one pole has to be held up, in "double" two, one on top of the other. In "swingup"
    the pole hangs down at the start, and has to be brought up first.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, task="single", sparse=True, max_episode_steps=None):
        model, self.joints, self.first_angle, self.torque, obs_dim = TASKS[task]
        self.num_envs = num_envs
        self.task = task
        self.sparse = sparse
        self.max_episode_steps = np.inf if max_episode_steps is None else max_episode_steps
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,))
        self.single_action_space = gym.spaces.Box(-1, 1, (1,))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (num_envs, obs_dim))
        self.action_space = gym.spaces.Box(-1, 1, (num_envs, 1))
        self.steps = np.zeros(num_envs, int)
        self.done = np.ones(num_envs, bool)

        self.world = {"physicsClientId": pybullet.connect(pybullet.DIRECT)}
        pybullet.setGravity(0, 0, -9.8, **self.world)
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=0.0165, numSolverIterations=5, numSubSteps=1, **self.world)
        path = f"{pybullet_data.getDataPath()}/mjcf/{model}"
        flags = pybullet.URDF_GOOGLEY_UNDEFINED_COLORS
        self.bodies = []
        for y in range(num_envs):
            *scenery, body = pybullet.loadMJCF(path, flags=flags, **self.world)
            for thing in scenery:
                pybullet.removeBody(thing, **self.world)
            pybullet.resetBasePositionAndOrientation(body, (0, y, 0), (0, 0, 0, 1), **self.world)
            for joint in self.joints:  # Bullet brakes every joint unless it is told not to
                pybullet.setJointMotorControl2(
                    body, joint, pybullet.POSITION_CONTROL, force=0, **self.world)
            self.bodies.append(body)

    def reset(self, *, seed=None, options=None):
        """Start all episodes."""
        super().reset(seed=seed)
        self.done[:] = False
        self._start(range(self.num_envs))
        return self._outcome()[0], {}

    def step(self, actions):
        """Move all pendulums on by 16.5 ms. Where an episode is over, only start the next one."""
        torques = self.torque * np.clip(np.asarray(actions, float)[:, 0], -1, 1)
        for body, torque in zip(self.bodies, torques):
            pybullet.setJointMotorControl2(
                body, 0, pybullet.TORQUE_CONTROL, force=torque, **self.world)
        pybullet.stepSimulation(**self.world)
        self.steps += 1
        fresh = self.done
        self._start(np.flatnonzero(fresh))
        obs, reward, terminated = self._outcome()  # after a start nothing is near its fall
        truncated = self.steps >= self.max_episode_steps
        self.done = terminated | truncated
        return obs, np.where(fresh, 0.0, reward), terminated, truncated, {}

    def _start(self, indices):
        """Start episodes of these pendulums, at rest and near the first angle."""
        hinges = len(self.joints) - 1
        for i in indices:
            angles = self.first_angle + self.np_random.uniform(-0.1, 0.1, hinges)
            self._place(i, [0, *angles], [0] * len(self.joints))
            self.steps[i] = 0

    def _place(self, i, positions, speeds):
        """Give the joints of pendulum i these positions and speeds."""
        for joint, position, speed in zip(self.joints, positions, speeds):
            pybullet.resetJointState(self.bodies[i], joint, position, speed, **self.world)

    def _outcome(self):
        """Observations (N, obs_dim), rewards (N,), and which pendulums have fallen (N,)."""
        states = [pybullet.getJointStates(body, self.joints, **self.world) for body in self.bodies]
        joints = np.array([[joint[:2] for joint in state] for state in states])  # (N, joints, 2)
        angle, speed = joints[:, 1:, 0], joints[:, 1:, 1]  # (N, hinges)
        hinges = np.stack([np.cos(angle), np.sin(angle), speed], axis=2)
        obs = [joints[:, 0], hinges.reshape(self.num_envs, -1)]
        if self.task == "single":
            fallen = np.abs(angle[:, 0]) > 0.2
            survived = ~fallen & (self.steps % 200 == 0)
            reward = 100 * survived if self.sparse else np.ones(self.num_envs)
        elif self.task == "double":
            poles = [pybullet.getLinkState(body, 5, **self.world)[0] for body in self.bodies]
            x, _, height = np.transpose(poles)  # of the centre of the second pole
            obs.insert(1, x[:, None])
            fallen = height + 0.3 <= 1
            penalty = 0.01 * x**2 + (height + 0.3 - 2) ** 2
            reward = height >= 0.89 if self.sparse else 10 - penalty
        else:
            fallen = np.zeros(self.num_envs, bool)
            up = (np.cos(angle) > 0.95) & (np.abs(speed) < 1)
            reward = (up if self.sparse else np.cos(angle))[:, 0]
        return np.hstack(obs).astype(np.float32), reward, fallen

    def close_extras(self, **kwargs):
        """Free the Bullet world."""
        pybullet.disconnect(**self.world)


class PendulumEnv(gym.Env):
    """One pendulum, for `gym.make`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(self, task="single", sparse=True, render_mode=None):
        self.envs = PendulumVectorEnv(1, task, sparse)
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        """Start an episode."""
        super().reset(seed=seed)
        self.envs.np_random = self.np_random
        return self.envs.reset()[0][0], {}

    def step(self, action):
        """Move on by 16.5 ms, also past the end of an episode. gym.make adds the time limit."""
        self.envs.done[:] = False
        obs, reward, terminated, _, _ = self.envs.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), False, {}

    def set_state(self, obs):
        """Put the pendulum into the state that an observation (obs_dim,) shows."""
        x, vx, *others = np.asarray(obs, float)
        cos, sin, speed = np.reshape(others[-3 * (len(self.envs.joints) - 1):], (-1, 3)).T
        self.envs._place(0, [x, *np.arctan2(sin, cos)], [vx, *speed])

    def render(self):
        """A picture (240, 320, 3) uint8, drawn without a screen."""
        view = pybullet.computeViewMatrix((0, -2, 0.6), (0, 0, 0.4), (0, 0, 1))
        lens = pybullet.computeProjectionMatrixFOV(60, 4 / 3, 0.1, 10)
        image = pybullet.getCameraImage(
            320, 240, view, lens, renderer=pybullet.ER_TINY_RENDERER, **self.envs.world)
        return np.reshape(image[2], (240, 320, 4))[..., :3].astype(np.uint8)

    def close(self):
        """Free the Bullet world."""
        self.envs.close()


for name, task, sparse, threshold in (
    ("InvertedPendulumPyBulletSparseEnv-v0", "single", True, 475),
    ("InvertedPendulumPyBulletEnv-v0", "single", False, 950),
    ("InvertedDoublePendulumPyBulletSparseEnv-v0", "double", True, 950),
    ("InvertedDoublePendulumPyBulletEnv-v0", "double", False, 9100),
    ("InvertedPendulumSwingupPyBulletSparseEnv-v0", "swingup", True, 850),
    ("InvertedPendulumSwingupPyBulletEnv-v0", "swingup", False, 800),
):
    gym.register(name, PendulumEnv, threshold, max_episode_steps=1000,
                 vector_entry_point=PendulumVectorEnv, kwargs={"task": task, "sparse": sparse})
