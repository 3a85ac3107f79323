"""benchmark.py: the runs that it makes, and what it writes about them."""
import json
from dataclasses import replace

import numpy as np
import pytest

import benchmark
from demos.record import ROOT, load_script
from experiments import EXPERIMENTS, TASKS

DQN = TASKS["dqn/CartPole-v1"]
PACKAGES = {"Baselines": "stable_baselines3", "demos.pendulums": "pybullet", "Lander": "Box2D",
            "Bipedal": "Box2D", "HalfCheetah": "mujoco", "Hopper": "mujoco"}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A function that writes invented rows into a results.jsonl of the test's own."""
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(benchmark, "RESULTS", path)
    return lambda *rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(seed, mean=500.0, steps=1000, cpu=4.0, table="tasks", run=DQN.name, fingerprint=None):
    return {"table": table, "run": run, "seed": seed, "steps": steps, "cpu": cpu, "return": mean,
            "fingerprint": fingerprint or benchmark.fingerprint(DQN), "curve": [[0, 9.0]]}


def test_only_runs_that_are_missing_or_stale_are_made(results):
    results(row(3201), row(3202, fingerprint="old"), row(3203, fingerprint="old"), row(3203))
    missing, stale = benchmark.to_do([DQN], range(3201, 3205))
    assert (missing, stale) == ([(DQN, 3204)], [(DQN, 3202)])  # of 3203 the newer row counts


def test_command_says_what_is_missing_and_makes_it(results, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(benchmark, "make", lambda runs, processes: made.extend(runs))
    results(row(3201), row(3202, fingerprint="old"))
    benchmark.main(["--only", "tasks: dqn", "--seeds", "3201-3203"])
    assert made == [(DQN, 3203), (DQN, 3202)]
    assert capsys.readouterr().out == "1 runs are missing, 1 are stale\n"


def test_report_refuses_stale_runs_and_names_them(results):
    results(row(3201, fingerprint="old"))
    with pytest.raises(SystemExit, match="1 runs are stale.*tasks: dqn/CartPole-v1"):
        benchmark.main(["--report"])


def test_published_runs_are_of_the_code_of_today():
    stale = benchmark.to_do(EXPERIMENTS)[1]
    assert not stale, benchmark.complaint(stale)


def test_a_run_is_solved_if_its_mean_return_reaches_the_goal(results, tmp_path):
    results(row(3201, 500, 20_000, 3.2), row(3202, 475, 40_000), row(3203, 474.9, 160_000, 9))
    (e, runs), = benchmark.found()
    assert benchmark.cells(e, runs) == {
        "run": DQN.name, "goal": "475", "solved": "2 of 3", "return": "475 (475 to 500)",
        "steps": "40,000 (20,000 to 160,000)", "CPU s": "4 (3 to 9)"}
    benchmark.draw(tmp_path / "picture.png", {"title": (475, {"label": runs})})


def test_what_is_different_stands_below_its_task(results):
    results(row(3001, 9, table="break it", run=f"{DQN.name}, no replay"), row(3201))
    lines = benchmark.figures()["tests/RESULTS.md", "results: break it"].splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == [DQN.name, f"{DQN.name}, no replay"]
    assert benchmark.figures()["tests/RESULTS.md", "results: peers"] == "No runs yet."


def test_figures_go_between_their_markers():
    text = "a <!-- results -->old<!-- end --> b <!-- results: x -->kept<!-- end -->\n"
    assert benchmark.fill(text, "results", "new") == text.replace("old", "\n\nnew\n\n")
    with pytest.raises(AssertionError, match="no <!-- y -->"):
        benchmark.fill(text, "y", "new")


def test_published_figures_are_those_of_the_runs():
    for (path, marker), figure in benchmark.figures().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert benchmark.fill(text, marker, figure) == text, "python tests/benchmark.py --report"
        assert max(map(len, figure.splitlines())) <= 120


def test_names_are_unique_and_each_setting_differs_from_the_default():
    assert len({(e.table, e.name) for e in EXPERIMENTS}) == len(EXPERIMENTS)
    for e in EXPERIMENTS:
        if e.table in ("controls", "departures", "break it"):
            settings = TASKS[e.name.split(",")[0]].settings
            task = load_script(ROOT / f"{e.script}.py").Config(**settings)
            assert e.change or e.recording or replace(task, **e.settings) != task, e.name


def load_quick(path):
    module = load_script(path)
    module.evaluate = lambda agent, env_id, episodes, seed: np.full(episodes, -1e4)
    return module


@pytest.mark.parametrize("e", EXPERIMENTS, ids=lambda e: f"{e.table}: {e.name}")
def test_experiment_runs_with_the_script_of_today(e, monkeypatch):
    for word, package in PACKAGES.items():
        if word in e.name + e.settings["env_id"]:
            pytest.importorskip(package)
    monkeypatch.setattr(benchmark, "load_script", load_quick)
    monkeypatch.chdir(ROOT)
    made = benchmark.run((e._replace(settings=e.settings | {"total_timesteps": 64}), 1))
    assert made["return"] == -1e4 and not made["solved_by_itself"]
