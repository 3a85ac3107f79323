"""Tiny runs: training with settings so small that it takes a fraction of a second."""

import dataclasses
import importlib
import tempfile
from pathlib import Path

import numpy as np

TOP = Path(__file__).parent.parent
SCRIPTS = ["dqn", "ppo", "pofd", "sac"]
BOX_ONLY = ["pofd", "sac"]
FOLDER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # of demonstrations for the probes
SETTINGS = dict(
    total_timesteps=256, eval_frequency=128, num_envs=4, hidden_size=16, learning_rate=2e-2, buffer_size=50,
    batch_size=16, end_e=0.4, exploration_fraction=0.5, num_steps=16, update_epochs=3, num_minibatches=2,
    max_episode_steps=100)


def demonstrations(seed=0, **changes):
    """A file of 50 random steps; `changes` replaces its arrays, None leaves one out."""
    rng = np.random.default_rng(seed)
    arrays = {"observations": rng.normal(size=(50, 2)), "actions": rng.normal(size=(50, 1))} | changes
    path = Path(FOLDER.name) / f"{seed}{''.join(changes)}.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def probe(script, name):
    """The probe's id, in the variant that the script can act in."""
    return f"probes:{name}{'Box' if script in BOX_ONLY else ''}-v0"


def tiny(script, name="ByActions", **settings):
    """A module and its settings for a tiny run on a probe."""
    module = importlib.import_module(script)
    settings = {"env_id": probe(script, name), "demo": demonstrations()} | SETTINGS | settings
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module, module.Config(**{key: value for key, value in settings.items() if key in known})


def train(script, name="ByActions", **settings):
    """A tiny run: the agent and the rows that were reported."""
    (module, config), rows = tiny(script, name, **settings), []
    return module.main(config, report=rows.append), rows


def last_step(rows):
    """Where training ended."""
    return int(rows[-1].split()[1])


def weights(agent):
    """All of them, as bytes."""
    return b"".join(value.detach().numpy().tobytes() for value in agent.state_dict().values())


def spy(monkeypatch, owner, name, see):
    """Have `see(result, *arguments)` called after each call of `owner.name`."""
    function = getattr(owner, name)

    def watched(*args, **kwargs):
        result = function(*args, **kwargs)
        see(result, *args)
        return result

    monkeypatch.setattr(owner, name, watched)
