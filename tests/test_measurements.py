"""benchmark.py and break_it.py: the runs that they make, and the figures that they make of them."""
import multiprocessing.pool
import random
import re
from types import SimpleNamespace

import pytest

import benchmark
import break_it

EXPERIMENTS = [*benchmark.EXPERIMENTS, *break_it.EXPERIMENTS]
TASK, LAYER_NORM, RATE, NO_REPLAY = "dqn/CartPole-v1", *(
    f"dqn.py: {name}" for name in ("LayerNorm", "learning rate falls to zero", "no replay"))


def row(table, run, seed, mean, steps=1000, cpu=4.0):
    """An invented run. A mean of None is that of a run whose loss was not finite."""
    judged = {} if mean is None else {"return": mean, "worst": mean - 100}
    return {"table": table, "run": run, "seed": seed, "hash": "", "steps": steps, "cpu": cpu, **judged}


def test_a_run_is_solved_if_its_mean_reaches_the_goal():
    runs = (1101, 500.0, 20_000, 3.0), (1102, 475.0, 40_000, 4.0), (1103, 474.9, 160_000, 9.0)
    figures = benchmark.figures([row("tasks", "dqn/CartPole-v1", *run) for run in runs])
    assert figures["tasks"] == [{
        "task": "dqn/CartPole-v1", "program": "`dqn.py`", "goal": "475", "solved": "2 of 3",
        "return": "475.0 (474.9 to 500.0)", "worst episode": "374.9", "CPU s": "4.0 (3.0 to 9.0)",
        "steps": "30,000 (20,000 to 40,000)", "failed": "1103 (474.9)"}]
    assert figures["dqn"] == "2 of 3 seeds, 30,000 (20,000 to 40,000) steps, 4.0 (3.0 to 9.0) CPU seconds"


def test_a_run_that_is_not_finite_is_not_solved():
    line, = benchmark.figures([row("tasks", "sac/double", 1101, None, 0)])["tasks"]
    expected = {"solved": "0 of 1", "return": "-", "steps": "-", "failed": "1101 (nan)"}
    assert expected.items() <= line.items()


@pytest.mark.parametrize("run, verdict, having, failed", [
    (LAYER_NORM, "kept", "2 of 2", "1302 (9.0)"), (RATE, "dropped", "1 of 2", "")])
def test_a_departure_is_taken_away_or_added(run, verdict, having, failed):
    rows = [row("tasks", TASK, seed, 500.0, cpu=4.0) for seed in (1301, 1302)]
    rows += [row("departures", run, *ends, cpu=8.0) for ends in ((1301, 500.0), (1302, 9.0))]
    figures = break_it.figures(rows)
    line, = figures["departures"]
    assert (line[""], line["solved with"], line["failed without"]) == (verdict, having, failed)
    assert figures[run] == "without it 1 of 2 seeds and 2.0 times the CPU seconds"


def test_a_fault_stands_below_the_script_as_it_is():
    rows = [row("break it", NO_REPLAY, 1301, 9.5), row("tasks", TASK, 1301, 500.0)]
    lines = [(line["broken"], line["solved"]) for line in break_it.figures(rows)["break it"]]
    assert lines == [("dqn.py as it is", "1 of 1"), (NO_REPLAY, "0 of 1")]


def test_figures_go_between_their_markers():
    text = "a <!-- results: x -->old<!-- end --> b <!-- results: y -->kept<!-- end -->\n"
    assert benchmark.fill(text, {"x": "new"}) == text.replace("old", "new")
    assert "-->\n\n| a   |\n|:----|\n| 1   |\n\n<!--" in benchmark.fill(text, {"x": [{"a": 1}]})


@pytest.mark.parametrize("path", ["README.md", "tests/RESULTS.md"])
def test_published_figures_are_those_of_the_runs(path):
    rows, text = benchmark.read(), (benchmark.TOP / path).read_text()
    random.shuffle(rows)
    figures = benchmark.figures(rows) | break_it.figures(rows)
    assert set(re.findall("<!-- results: (.+?) -->", text)) <= set(figures)
    assert benchmark.fill(text, figures) == text


def test_results_hold_what_is_reported_and_no_more():
    assert {(row["table"], row["run"]) for row in benchmark.read()} <= {e[:2] for e in EXPERIMENTS}
    assert benchmark.RESULTS.stat().st_size < 150_000


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: "-".join(experiment[:2]))
def test_every_change_fits_the_script_of_today(experiment):
    module = benchmark.types.ModuleType(experiment.script)
    exec(experiment.code(), module.__dict__)  # fails if the text of an edit is gone
    default, changed = module.Config(), module.Config(**experiment.settings)
    assert all(getattr(changed, name) != getattr(default, name) for name in experiment.settings)


@pytest.mark.filterwarnings("ignore:.*were cut at")
@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e.edits], ids=lambda e: "-".join(e[:2]))
def test_every_edited_script_trains(experiment):
    default = re.search('env_id: str = "(.*?)"', experiment.code())[1]
    if "PyBullet" in experiment.settings.get("env_id", default):
        pytest.importorskip("pybullet")
    edits = (*experiment.edits, ("steps < 10_000", "steps < 3"))  # short episodes in evaluate
    settings = {**experiment.settings, "total_timesteps": 64}
    result = benchmark.run((experiment._replace(settings=settings, edits=edits), 1))
    assert result["steps"] >= 64 and "return" in result


def test_only_new_or_changed_runs_are_made(monkeypatch, tmp_path, capsys):
    pool = SimpleNamespace(Pool=lambda jobs, maxtasksperchild: multiprocessing.pool.ThreadPool(jobs))
    monkeypatch.setattr(benchmark, "get_context", lambda method: pool)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(benchmark, "run", lambda job: {
        **row("tasks", job[0].name, job[1], 500.0), "hash": job[0].fingerprint()})
    task = benchmark.TASKS["dqn/CartPole-v1"]
    changed = task._replace(settings={"gamma": 0.9})
    for experiment, seeds, made in (task, [1, 2], 2), (task, [1, 2, 3], 1), (changed, [1, 2, 3], 3):
        benchmark.run_missing([experiment], seeds, jobs=1)
        assert capsys.readouterr().out.count(f"of {made}") == made
    assert sorted(row["seed"] for row in benchmark.read()) == [1, 2, 3]


def test_comments_and_docstrings_do_not_change_a_run(monkeypatch):
    hashes = []
    for text in '"""Words."""\nx = 1\n', '"""Other\nwords."""\nx = 1  # and more\n', '"""Words."""\nx = 2\n':
        monkeypatch.setattr(benchmark.Experiment, "code", lambda self, text=text: text)
        hashes.append(benchmark.TASKS["dqn/CartPole-v1"].fingerprint())
    assert hashes[0] == hashes[1] != hashes[2]
