"""Tiny runs: training with settings so small that it takes a fraction of a second."""
import importlib
import tempfile
from pathlib import Path

import numpy as np

import probes

TOP = Path(__file__).parent.parent
SCRIPTS = ["dqn", "ppo", "pofd", "sac"]
KINDS = {"dqn": "", "ppo": "", "pofd": "Box", "sac": "Box"}  # of probes
NETWORKS = {"dqn": "QNetwork", "ppo": "ActorCritic", "pofd": "ActorCritic", "sac": "Actor"}
FOLDER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # of demonstrations
SETTINGS = dict(
    total_timesteps=256, eval_frequency=128, eval_episodes=5, num_envs=4, hidden_size=16, tau=0.2,
    learning_rate=2e-2, reward_scale=1.0, buffer_size=50, batch_size=16, end_e=0.4, num_steps=16,
    exploration_fraction=0.5, update_epochs=3, num_minibatches=2, restart_frequency=64)


def demonstrations(seed=0, **changes):
    """A file of 50 random steps; `changes` replaces its arrays, None leaves one out."""
    rng = np.random.default_rng(seed)
    arrays = {"observations": rng.normal(size=(50, 2)), "actions": rng.normal(size=(50, 1))}
    path = Path(FOLDER.name) / f"{seed}{'changed' if changes else ''}.npz"
    np.savez(path, **{key: x for key, x in (arrays | changes).items() if x is not None})
    return str(path)


def network(script, action_space=None, obs_space=probes.FLAT, hidden_size=16):
    """A new network that acts, for the probes or for other spaces."""
    build = getattr(importlib.import_module(script), NETWORKS[script])
    return build(obs_space, action_space or probes.ACTIONS[KINDS[script]], hidden_size)


def tiny(script, name="ByActions", **settings):
    """A module and its settings for a tiny run on a probe."""
    module = importlib.import_module(script)
    probe = f"probes:{name}{KINDS[script]}-v0"
    settings = {"env_id": probe, "demo": demonstrations()} | SETTINGS | settings
    known = vars(module.Config()).keys() & settings.keys()
    return module, module.Config(**{name: settings[name] for name in known})


def train(script, name="ByActions", **settings):
    """A tiny run: the agent and the rows that were reported."""
    (module, config), rows = tiny(script, name, **settings), []
    return module.main(config, report=rows.append), rows


def weights(agent):
    """All of them, as bytes."""
    return b"".join(value.numpy().tobytes() for value in agent.state_dict().values())


def spy(monkeypatch, owner, name, see):
    """Have `see(result, *arguments)` called after each call of `owner.name`."""
    function = getattr(owner, name)

    def watched(*args, **kwargs):
        result = function(*args, **kwargs)
        see(result, *args)
        return result
    monkeypatch.setattr(owner, name, watched)
