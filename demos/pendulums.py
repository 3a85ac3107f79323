"""PyBullet's inverted pendulum and inverted double pendulum, with sparse and with dense rewards.

Any script takes them as a plug-in: `python ppo.py --env-id demos.pendulums:InvertedPendulumPyBulletEnv-v0`.
Observations equal those of the package pybullet_envs_gymnasium to the last bit.
"""
import gymnasium as gym
import numpy as np

try:
    import pybullet
    import pybullet_data
except ImportError:
    raise ImportError(
        "the pendulums need pybullet: `pip install pybullet` on Linux (x86_64) with Python 3.10 or 3.11, "
        "`pip install pybullet-arm64` there with 3.12 or 3.13 and on macOS and Windows with 3.10 to 3.13; "
        "there is none for Python 3.14 or for Linux on ARM") from None


class PendulumVectorEnv(gym.vector.VectorEnv):
    """N carts with one pole or two, 1 m apart in one Bullet world: a single physics step moves them all."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, double=False, sparse=True, max_episode_steps=np.inf):
        self.num_envs, self.double, self.sparse = num_envs, double, sparse
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (9 if double else 5,))
        self.single_action_space = gym.spaces.Box(-1, 1, (1,))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.steps, self.done = np.zeros(num_envs, int), np.ones(num_envs, bool)

        self.world = {"physicsClientId": pybullet.connect(pybullet.DIRECT)}
        pybullet.setGravity(0, 0, -9.8, **self.world)
        pybullet.setPhysicsEngineParameter(0.0165, numSolverIterations=5, numSubSteps=1, **self.world)
        model = f"{pybullet_data.getDataPath()}/mjcf/inverted_{'double_' if double else ''}pendulum.xml"
        self.joints = [0, 2, 4] if double else [0, 2]  # the slider and the hinges; the other joints are rigid
        self.bodies = []
        for i in range(num_envs):
            *scenery, body = pybullet.loadMJCF(
                model, flags=pybullet.URDF_GOOGLEY_UNDEFINED_COLORS, **self.world)
            for thing in scenery:
                pybullet.removeBody(thing, **self.world)
            pybullet.resetBasePositionAndOrientation(body, (0, i, 0), (0, 0, 0, 1), **self.world)
            for joint in self.joints:  # Bullet brakes every joint unless it is told not to
                pybullet.setJointMotorControl2(body, joint, pybullet.POSITION_CONTROL, force=0, **self.world)
            self.bodies.append(body)

    def reset(self, *, seed=None, options=None):
        """Start all episodes anew."""
        super().reset(seed=seed)
        return self._observe(np.ones(self.num_envs, bool))[0], {}

    def step(self, actions):
        """Move every pendulum on by 16.5 ms. One whose episode was over starts anew instead."""
        torque = np.clip(np.asarray(actions, float)[:, 0], -1, 1) * (200 if self.double else 100)
        for body, force in zip(self.bodies, torque):
            pybullet.setJointMotorControl2(body, 0, pybullet.TORQUE_CONTROL, force=force, **self.world)
        pybullet.stepSimulation(**self.world)
        self.steps += 1
        return self._observe(self.done)

    def _observe(self, fresh):
        """Start those of the mask `fresh` (N,) anew, then return what `step` returns."""
        self.steps[fresh] = 0
        for i in np.flatnonzero(fresh):
            start = [0, *self.np_random.uniform(-0.1, 0.1, len(self.joints) - 1)]
            for joint, position in zip(self.joints, start):
                pybullet.resetJointState(self.bodies[i], joint, position, 0, **self.world)

        states = [pybullet.getJointStates(body, self.joints, **self.world) for body in self.bodies]
        state = np.array([[joint[:2] for joint in joints] for joints in states])  # (N, joints, 2)
        tip = self.joints[-1] + 1  # the last pole
        tips = np.array([pybullet.getLinkState(body, tip, **self.world)[0] for body in self.bodies])
        angle, x, height = state[:, 1:, :1], tips[:, 0], tips[:, 2]  # (N, hinges, 1), (N,), (N,)
        hinges = np.concatenate([np.cos(angle), np.sin(angle), state[:, 1:, 1:]], 2)
        parts = [state[:, 0], x[:, None], hinges.reshape(self.num_envs, -1)]
        obs = np.hstack(parts if self.double else parts[::2]).astype(np.float32)

        fallen = height + 0.3 <= 1 if self.double else np.abs(angle[:, 0, 0]) > 0.2
        terminated, truncated = fallen & ~fresh, self.steps >= self.max_episode_steps
        if self.double:
            reward = height >= 0.89 if self.sparse else 10 - (0.01 * x**2 + (height + 0.3 - 2) ** 2)
        else:
            reward = 100 * (~terminated & (self.steps % 200 == 0)) if self.sparse else 1
        self.done = terminated | truncated
        return obs, np.where(fresh, 0.0, reward), terminated, truncated, {}

    def close_extras(self, **kwargs):
        """Free the Bullet world."""
        pybullet.disconnect(**self.world)


class PendulumEnv(gym.Env):
    """One pendulum, for `gym.make`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(self, double=False, sparse=True, render_mode=None):
        self.envs, self.render_mode = PendulumVectorEnv(1, double, sparse), render_mode
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space

    def reset(self, *, seed=None, options=None):
        """Start an episode: the first observation (obs_dim,)."""
        super().reset(seed=seed)
        self.envs.np_random = self.np_random
        return self.envs.reset()[0][0], {}

    def step(self, action):
        """Move on by 16.5 ms. Past its end an episode runs on; the time limit is a wrapper's."""
        self.envs.done[:] = False
        obs, reward, terminated, _, _ = self.envs.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), False, {}

    def render(self):
        """A picture (240, 320, 3) uint8, drawn without a screen."""
        view = pybullet.computeViewMatrix((0, -2, 0.6), (0, 0, 0.4), (0, 0, 1))
        lens = pybullet.computeProjectionMatrixFOV(60, 4 / 3, 0.1, 10)
        image = pybullet.getCameraImage(
            320, 240, view, lens, renderer=pybullet.ER_TINY_RENDERER, **self.envs.world)[2]
        return np.reshape(image, (240, 320, 4))[..., :3].astype(np.uint8)

    def close(self):
        """Free the Bullet world."""
        self.envs.close()


for name, double, sparse, threshold in (
    ("InvertedPendulumPyBulletSparseEnv-v0", False, True, 475),
    ("InvertedDoublePendulumPyBulletSparseEnv-v0", True, True, 950),
    ("InvertedPendulumPyBulletEnv-v0", False, False, 950),
    ("InvertedDoublePendulumPyBulletEnv-v0", True, False, 9100),
):
    gym.register(name, PendulumEnv, threshold, max_episode_steps=1000, vector_entry_point=PendulumVectorEnv,
                 kwargs={"double": double, "sparse": sparse})
