"""benchmark.py: the runs that it makes, and what it writes about them."""
import json
import re

import numpy as np
import pytest

import benchmark
from demos.record import ROOT, load_script

DQN = benchmark.EXPERIMENTS["dqn/CartPole-v1"]
PACKAGES = {"Baselines": "stable_baselines3", "demos.pendulums": "pybullet", "Lander": "Box2D",
            "Bipedal": "Box2D", "HalfCheetah": "mujoco", "Hopper": "mujoco"}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A function that writes invented rows into a results.jsonl of the test's own."""
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(benchmark, "RESULTS", path)
    return lambda *rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(seed, mean=500.0, steps=1000, cpu=4.0, **fields):
    return {"table": "tasks", "run": DQN["run"], "seed": seed, "steps": steps, "cpu": cpu,
            "return": mean, "fingerprint": benchmark.fingerprint(DQN), "curve": [[0, 9]]} | fields


def test_runs_that_are_missing_or_stale_are_made_and_not_published(results, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(benchmark, "make", lambda runs, processes: made.extend(runs))
    old = [row(3602, fingerprint="old"), row(3603, fingerprint="old")]
    results(row(3601), *old, row(3603))  # of 3603 the newer row counts
    benchmark.main(["--only", "tasks: dqn", "--seeds", "3601-3604"])
    assert made == [(DQN, 3604), (DQN, 3602)]
    assert capsys.readouterr().out == "1 runs are missing, 1 are stale\n"
    with pytest.raises(SystemExit, match="^1 runs are stale.*: dqn/CartPole-v1$"):
        benchmark.main(["--report"])


def test_published_runs_are_of_the_code_of_today():
    benchmark.refuse_stale_runs()


def test_published_tables_are_those_of_the_runs():
    markers = []
    for path in ROOT / "README.md", ROOT / "tests/RESULTS.md":
        text = path.read_text("utf-8")
        markers += re.findall("<!-- (results.*?) -->", text)
        assert benchmark.fill(text) == text, "python tests/benchmark.py --report"
        assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    tables = {f"results: {e['table']}" for e in benchmark.EXPERIMENTS.values()}
    assert len(markers) == len(tables) + 1 and {*markers} == {"results", *tables}


def test_a_task_and_below_it_what_is_different_each_solved_if_the_mean_reaches_the_goal(
        results, tmp_path):
    different = f"{DQN['run']}, no replay"
    results(row(3601, 9, 160_000, table="break it", run=different),
            row(3601, 500, 20_000, 3.2), row(3602, 475, 40_000), row(3603, 474.9, 160_000, 9))
    task, broken = benchmark.table("break it")
    assert broken == {"run": different, "solved": "0 of 1", "return": "9", "steps": "160,000",
                      "CPU s": "4"}
    assert task == {"run": DQN["run"], "solved": "2 of 3", "return": "475 (475 to 500)",
                    "steps": "40,000 (20,000 to 160,000)", "CPU s": "4 (3 to 9)"}
    assert "| 475 " in benchmark.fill("<!-- results: tasks -->old<!-- end -->")
    assert "No runs yet." in benchmark.fill("<!-- results: peers --><!-- end -->")
    benchmark.draw(tmp_path / "picture.png", 1, [[DQN["run"], different]])


def load_quick(path):
    module = load_script(path)
    module.evaluate = lambda agent, env_id, episodes, seed: np.full(episodes, -1e4)
    return module


@pytest.mark.parametrize("run", benchmark.EXPERIMENTS)
def test_experiment_runs_with_the_script_of_today(run, monkeypatch):
    experiment = benchmark.EXPERIMENTS[run]
    settings = experiment["settings"] | {"total_timesteps": 64}
    for word, package in PACKAGES.items():
        if word in run + settings["env_id"]:
            pytest.importorskip(package)
    monkeypatch.setattr(benchmark, "load_script", load_quick)
    monkeypatch.chdir(ROOT)
    assert benchmark.run((experiment | {"settings": settings}, 1))["return"] == -1e4
