"""The experiments of break_it.py: each finds its text, trains, and differs from the unbroken script."""

import functools
import json
import multiprocessing.pool
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

import break_it
from break_it import EXPERIMENTS, UNBROKEN, Experiment

SHORT = "ShortCartPole-v0"  # episodes end by termination and by truncation
TINY = {
    "dqn": dict(env_id=SHORT, total_timesteps=640, num_envs=4, hidden_size=16, batch_size=16,
                learning_starts=100),
    "ppo": dict(env_id=SHORT, total_timesteps=256, num_envs=4, num_steps=16, hidden_size=16,
                learning_rate=0.03, update_epochs=4),
    "pofd": dict(total_timesteps=256, num_envs=4, num_steps=16, hidden_size=16, discriminator_steps=2),
    "sac": dict(env_id="InvertedPendulumPyBulletSparseEnv-v0", total_timesteps=400, num_envs=4,
                hidden_size=16, batch_size=16, learning_starts=100),
}  # fmt: skip


@pytest.fixture(autouse=True)
def registry():
    """Broken scripts register their environments under the same ids: put the true ones back."""
    before = dict(gym.registry)
    gym.register(SHORT, "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=15)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def run(experiment):
    if experiment.script in ("pofd", "sac"):
        pytest.importorskip("pybullet")
    return break_it.run(experiment, 1, **{**TINY[experiment.script], **experiment.settings})


@functools.cache
def unbroken(script):
    return run(UNBROKEN[script])


def by_title(experiments):
    return pytest.mark.parametrize("experiment", experiments, ids=lambda experiment: experiment.title)


def test_titles_are_unique_and_every_row_says_why():
    everything = [*UNBROKEN.values(), *EXPERIMENTS]
    assert len({experiment.title for experiment in everything}) == len(everything)
    for experiment in EXPERIMENTS:
        assert experiment.edits or experiment.settings
        assert experiment.question.endswith("?") and experiment.why.endswith(".")
        assert (
            "|" not in experiment.name + experiment.question + experiment.why and "\n" not in experiment.why
        )


@by_title(EXPERIMENTS)
def test_text_stands_in_the_script_once(experiment):
    broken_source = break_it.broken_source(experiment)
    assert (broken_source != break_it.broken_source(UNBROKEN[experiment.script])) == bool(experiment.edits)


@by_title(EXPERIMENTS)
def test_broken_script_trains_otherwise(experiment):
    result, expected = run(experiment), unbroken(experiment.script)
    assert result["return"] is None or np.isfinite(result["return"])
    assert json.loads(json.dumps(result)) == result
    for row in result["last"], expected["last"]:
        row.pop("seconds", None)
    if set(experiment.settings) == {"averaging"}:  # changes the agent that is returned, not its training
        assert result["last"] == expected["last"]
    else:
        assert result["last"] != expected["last"]


def test_unbroken_is_the_script_itself():
    import dqn

    config = dqn.Config(**TINY["dqn"], seed=1)
    returns = dqn.evaluate(dqn.train(config, report=lambda row: None), SHORT, 100, 10_001)
    assert unbroken("dqn")["return"] == returns.mean()


def test_text_that_is_gone_or_there_twice_stops_it(monkeypatch, capsys):
    for text, found in ("no such text", "found 0 times"), ("import", "found "):
        experiment = Experiment("ppo", "nothing", "?", "", edits=((text, ""),))
        monkeypatch.setattr(break_it, "EXPERIMENTS", [experiment])
        with pytest.raises(SystemExit) as stopped:
            break_it.main([])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert error.startswith("break_it.py: error: ppo.py: nothing: ") and found in error


@pytest.mark.parametrize("argv", [["--only", "no such name"], ["--processes", "0"]])
def test_nothing_to_do(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        break_it.main(argv)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_fingerprint_is_of_what_runs(monkeypatch, tmp_path):
    source = (break_it.TOP / "dqn.py").read_text()
    monkeypatch.setattr(break_it, "TOP", tmp_path)

    def fingerprint(text, replacement):
        (tmp_path / "dqn.py").write_text(source.replace(text, replacement))
        return break_it.fingerprint(UNBROKEN["dqn"])

    assert fingerprint("def main(", "def main(") == fingerprint("parser.exit(130)", "parser.exit(131)")
    assert fingerprint("def main(", "def main(") == fingerprint('"""Greedy actions', '"""The greedy actions')
    assert fingerprint("def main(", "def main(") != fingerprint("gamma: float = 0.99", "gamma: float = 0.97")


def test_an_interrupted_run_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(break_it, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(break_it, "SEEDS", {"dqn": range(2)})
    monkeypatch.setattr(break_it, "UNBROKEN", {"dqn": UNBROKEN["dqn"]})
    monkeypatch.setattr(break_it, "SETTINGS", {"dqn": TINY["dqn"]})
    context = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(break_it.multiprocessing, "get_context", lambda method: context)
    first = break_it.run(UNBROKEN["dqn"], 0)
    stale = {**first, "seed": 1, "fingerprint": "that of another script"}
    break_it.RESULTS.write_text(f"{json.dumps(first)}\n{json.dumps(stale)}\n" + json.dumps(first)[:40])
    break_it.run_missing([UNBROKEN["dqn"]], processes=1)
    assert capsys.readouterr().out.count("unbroken") == 1  # seed 1
    assert sorted(seed for _, seed in break_it.load_results()) == [0, 1]
    before = break_it.RESULTS.read_bytes()
    break_it.run_missing([UNBROKEN["dqn"]], processes=1)
    assert break_it.RESULTS.read_bytes() == before


def test_table_and_readme(monkeypatch, tmp_path):
    experiment = EXPERIMENTS[0]
    results = {(UNBROKEN["dqn"].title, seed): {"return": 500.0} for seed in break_it.SEEDS["dqn"]}
    assert experiment.name not in break_it.table(results)  # its runs are missing
    for seed, value in zip(break_it.SEEDS["dqn"], (9.0, None, 30.25, 100.0, 50.0)):
        results[experiment.title, seed] = {"return": value}
    assert "| 500.0 (500.0) | 30.2 (not finite) |" in break_it.table(results)
    monkeypatch.setattr(break_it, "README", tmp_path / "README.md")
    for _ in range(2):
        break_it.README.write_text(f"before\n{break_it.START}\nold\n{break_it.END}\nafter\n")
        break_it.write_readme("new")
        assert break_it.README.read_text() == f"before\n{break_it.START}\nnew\n{break_it.END}\nafter\n"
