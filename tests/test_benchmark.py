"""The benchmark: fair clocks, resuming, what counts as solved, tables in step with results and defaults."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmark
import dqn
import pofd
import ppo
import sac

SINGLE = "InvertedPendulumPyBulletSparseEnv-v0"
SMALL = {
    dqn: dict(total_timesteps=640, num_envs=4, hidden_size=16, batch_size=16, learning_starts=100),
    ppo: dict(total_timesteps=512, num_envs=4, num_steps=16, hidden_size=16),
    pofd: dict(total_timesteps=512, num_envs=4, num_steps=16, hidden_size=16),
    sac: dict(total_timesteps=400, num_envs=4, hidden_size=16, batch_size=16, learning_starts=100),
}


def row(part="main", task="ppo/CartPole-v1", seed=1101, who="ours", final=500.0, grid=(10.0, 480.0, 500.0)):
    """A result as the benchmark would store it."""
    job = dict(part=part, task=task, who=who, seed=seed, quick=False)
    grid = [[1_000 * i, 1.0 + i, mean] for i, mean in enumerate(grid)]
    figures = dict(steps=3_000, cpu=4.0, wall=5.0, memory=300.0, grid=grid, final=final, worst=final)
    figures |= dict(env_cpu=1.0, gradient_cpu=2.0, acting_cpu=0.5, updates=7, amount=81.0, unit="bytes")
    figures |= dict(lines=[["optimizer.step()  # a | b", 0.6], ["x = a | b", 0.38], ["pass", 0.02]])
    versions = {"python": "3.11", "torch": "2.13.0"}
    figures = {name: figures[name] for name in benchmark.FIELDS[part]}
    return {
        **{k: job[k] for k in ("part", "task", "who", "seed")},
        **figures,
        "config": benchmark.settings(job),
        "versions": versions,
        "processor": "a processor",
    }


def write(path, *rows):
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Results, picture and README in a folder of the test's own."""
    for name in ("RESULTS", "PICTURE", "README"):
        monkeypatch.setattr(benchmark, name, tmp_path / getattr(benchmark, name).name)
    benchmark.README.write_text("before\n" + "".join(benchmark.MARKERS) + "after\n")
    return tmp_path


def fake_spawn(job, running):
    return row(job["part"], job["task"], job["seed"], job["who"])


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_evaluating_along_the_way_changes_no_bit(module):
    config, agents = module.Config(**SMALL[module], seed=5), []
    for watch in (False, True):
        agent = getattr(module, benchmark.NETWORKS[module.__name__])(config)
        grid = benchmark.Grid(agent, module, config, config.total_timesteps, quick=True)
        with benchmark.watched(grid if watch else lambda *_: None):
            assert module.train(config, report=benchmark.quiet, agent=agent) is agent
        agents.append(agent)
    assert [step for step, _, _ in grid.points][:3] == [0, *sorted(x[0] for x in grid.points)[1:3]]
    assert 10 <= len(grid.points) <= benchmark.POINTS and grid.points[-1][0] < config.total_timesteps
    for a, b in zip(*(agent.state_dict().values() for agent in agents)):
        assert torch.equal(a, b)
    assert benchmark.gym.make_vec.__module__.startswith("gymnasium")


def test_evaluations_stop_the_clocks(monkeypatch):
    config = ppo.Config(**SMALL[ppo])
    agent = ppo.ActorCritic(config)

    def slow(agent, env_id, episodes, seed):
        start = time.process_time()
        while time.process_time() < start + 0.5:
            pass
        return np.zeros(episodes)

    monkeypatch.setattr(ppo, "evaluate", slow)
    grid = benchmark.Grid(agent, ppo, config, 100, quick=True)
    cpu, wall = grid.clocks()
    for step in (0, 5, 6, 10):
        grid(step)
    assert [point[0] for point in grid.points] == [0, 5, 10]
    assert grid.clocks()[0] - cpu < 0.2 and grid.clocks()[1] - wall < 0.5
    assert all(point[1] - cpu < 0.2 for point in grid.points)
    assert grid.row(640)["cpu"] - cpu < 0.2  # the closing evaluation is off the clock, too


@pytest.mark.parametrize(
    "grid, final, expected",
    [
        ((10, 480, 500), 500, (1_000, 2.0)),
        ((480, 480, 480), 480, (0, 1.0)),
        ((10, 480, 470), 500, (3_000, 4.0)),  # solved only at the end
        ((10, 500, 500), 470, None),  # solved, then lost
        ((500, 10, 475), 475, (2_000, 3.0)),
    ],
)
def test_what_stays_solved(grid, final, expected):
    assert benchmark.stays_solved(row(grid=grid, final=final), 475) == expected


def test_second_call_goes_on_where_it_stopped(here, monkeypatch):
    calls = []

    def spawn(job, running):
        calls.append(benchmark.key(job))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fake_spawn(job, running)

    monkeypatch.setattr(benchmark, "spawn", spawn)
    arguments = ["--only", "dqn", "ppo/CartPole", "--seeds", "3", "--processes", "1"]
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 130
    before = benchmark.RESULTS.read_text()
    assert len(before.splitlines()) == 2
    assert benchmark.main(arguments) == 0
    assert benchmark.RESULTS.read_text().startswith(before)
    assert (
        len(benchmark.RESULTS.read_text().splitlines()) == 6 == len(benchmark.read_results(benchmark.RESULTS))
    )
    number = len(calls)
    assert benchmark.main(arguments) == 0 and len(calls) == number  # nothing left to do


def test_a_failing_run_is_named_and_the_others_go_on(here, monkeypatch, capsys):
    def spawn(job, running):
        if job["seed"] == 1102:
            raise RuntimeError("ppo/CartPole-v1 seed 1102: the loss is not finite")
        return fake_spawn(job, running)

    monkeypatch.setattr(benchmark, "spawn", spawn)
    assert benchmark.main(["--only", "ppo/CartPole", "--seeds", "3"]) == 1
    assert capsys.readouterr().err.endswith(
        "benchmark.py: error: ppo/CartPole-v1 seed 1102: the loss is not finite\n"
    )
    assert {x["seed"] for x in benchmark.read_results(benchmark.RESULTS).values()} == {1101, 1103}


def test_changed_defaults_are_noticed_and_run_again(here, monkeypatch):
    write(benchmark.RESULTS, row(), row(part="peers", who="sb3"), row(part="floor", task="dqn, 20,480 steps"))
    rows = benchmark.read_results(benchmark.RESULTS)
    assert benchmark.stale(rows) == []
    changed = dataclasses.make_dataclass("Config", [("gamma", float, 0.5)], bases=(ppo.Config,), frozen=True)
    monkeypatch.setattr(ppo, "Config", changed)
    assert benchmark.stale(rows) == ["main ppo/CartPole-v1 ours seed 1101"]
    assert len(benchmark.planned(["main"], {"ppo/CartPole-v1"}, [1101], False, rows)) == 1
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(["--readme"])
    assert exit_.value.code == 2
    monkeypatch.setitem(benchmark.PEERS["ppo/CartPole-v1"], "gamma", 0.5)
    assert len(benchmark.stale(rows)) == 2


def test_readme_and_picture_from_results(here):
    seeds = [row(seed=seed, final=500.0 - (seed == 1102) * 100) for seed in (1101, 1102, 1103)]
    peers = [
        row("peers", seed=s, who=who, grid=(500,) * (who == "ours"))
        for s in (1101, 1102)
        for who in ("ours", "sb3")
    ]
    others = [row("floor", "ppo, 20,480 steps"), row("speed", "ppo, 8 environments")]
    others.append(row("main", "pofd/single"))
    write(benchmark.RESULTS, *seeds, *peers, *others)
    assert benchmark.main(["--readme", "--plot"]) == 0
    text = benchmark.README.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| 2 of 3 | 500.0 (400.0 to 500.0) | 1,000 | 2.0 | 400.0 |" in text
    assert "| 2 of 2 / 2 of 2 | 500.0 / 500.0 | 0 / 3,000 | 1.0 / 4.0 | 4.0 |" in text
    assert "| 475 (80) |" in text and "| 1.33 | 1.14 |" in text and "torch 2.13.0" in text
    assert benchmark.PICTURE.read_bytes().startswith(b"\x89PNG")
    assert benchmark.with_tables(text, benchmark.read_results(benchmark.RESULTS)) == text
    write(benchmark.RESULTS, *seeds[:2], *peers, *others)
    assert benchmark.with_tables(text, benchmark.read_results(benchmark.RESULTS)) != text


def test_peer_that_fails_counts_as_at_least_its_whole_run():
    rows = [row("peers", grid=(500, 500, 500)), row("peers", who="sb3", final=100.0)]
    line = benchmark.peer_line({benchmark.key(x): x for x in rows}, "ppo/CartPole-v1")
    assert line[-1] == ">= 4.0" and line[1] == "1 of 1 / 0 of 1"


def test_published_figures_are_those_of_the_results():
    """The README's tables are the results file's, and these were made with today's defaults."""
    text = benchmark.README.read_text()
    if not benchmark.RESULTS.exists():
        assert benchmark.MARKERS[0] not in text, "tables without results"
        return
    rows = benchmark.read_results(benchmark.RESULTS)
    assert rows and benchmark.stale(rows) == []
    assert benchmark.with_tables(text, rows) == text, "run python tests/benchmark.py --readme"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--only", "nosuchtask"], "nosuchtask"),
        (["--only", "lambda"], "lambda"),  # a control, without --controls
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "many"], "many"),
        (["--first-seed", "-1"], "--first-seed"),
        (["--processes", "0"], "--processes"),
        (["--nosuchflag"], "--nosuchflag"),
        (["--readme"], "results.jsonl"),
        (["--plot"], "results.jsonl"),
        (["--quick", "no/such/folder"], "no/such/folder"),
    ],
)
def test_wrong_input_gets_one_line(arguments, words, here, capsys, monkeypatch):
    monkeypatch.setattr(
        benchmark, "run", lambda *_: pytest.fail("it ran") if arguments[0] != "--plot" and _[0] else []
    )
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count("\n") == 1 and words in err
    assert err.startswith("benchmark.py: error: ")


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", "", "{}", '{"part": "main"}', '{"part": "x", "task": []}', "\0"]
)
def test_broken_line_is_named(line, here, capsys):
    write(benchmark.RESULTS, row())
    with open(benchmark.RESULTS, "a") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit) as exit_:
        benchmark.main([])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count("\n") == 1 and "results.jsonl, line 2" in err


def test_readme_without_markers_gets_one_line(here, capsys):
    write(benchmark.RESULTS, row())
    benchmark.README.write_text("nothing here\n")
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(["--readme"])
    assert exit_.value.code == 2 and "benchmark: start" in capsys.readouterr().err


def test_settings_of_all_tasks_fit_the_scripts():
    for name in [*benchmark.TASKS, *benchmark.FLOORS, *benchmark.SIZES]:
        module, config = benchmark.load(name, 1101)
        assert config.seed == 1101 and module.__name__ == name[: len(module.__name__)]
    for task in "pofd/single", "pofd/double":
        ours, tenfold = (benchmark.load(name, 1101)[1] for name in (task, f"{task}, lambda x 10"))
        assert tenfold.reward_lambda == pytest.approx(10 * ours.reward_lambda)


@pytest.mark.parametrize("task", benchmark.PEERS)
def test_settings_of_the_peers_fit_them(task, monkeypatch):
    if "learning_starts" in benchmark.PEERS[task]:
        monkeypatch.setitem(benchmark.PEERS[task], "learning_starts", 100)
    monkeypatch.setattr(benchmark, "QUICK_STEPS", 200)
    result = benchmark.measure_peer(dict(task=task, who="sb3", seed=1101, quick=True))
    assert len(result["grid"]) == benchmark.POINTS and 200 <= result["steps"] <= 256 and result["cpu"] > 0


def test_random_demonstrations_are_what_pofd_reads(tmp_path):
    config = pofd.Config(seed=3)
    path = benchmark.random_demonstrations(config, config.demo_path, tmp_path / "x.npz")
    obs, action = pofd.load_demonstrations(path, 5, pofd.gym.spaces.Box(-1, 1, (1,)))
    assert len(obs) == len(np.load(config.demo_path)["actions"])
    assert abs(action.mean()) < 0.1 and action.std() == pytest.approx(3**-0.5, abs=0.05)


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_floor_repeats_the_very_gradient_steps(module):
    config = module.Config(**SMALL[module])
    with benchmark.gradient_steps() as found:
        module.train(config, report=benchmark.quiet)
    counts, calls = zip(*found.values())
    if module is ppo:  # 8 rollouts; the policy, the value
        assert counts == (8 * config.update_epochs * config.num_minibatches,) and len(calls[0]) == 2
    if module is dqn:  # Q, the target network
        assert counts == ((640 - 100) // config.train_frequency,) and len(calls[0]) == 2
    assert len(found) == (2 if module in (pofd, sac) else 1) and min(counts) > 0
    for optimizer, (_, calls) in found.items():
        weights = [
            weight for group in optimizer.param_groups for weight in group["params"] if weight.ndim == 2
        ]
        before = [weight.clone() for weight in weights]
        optimizer.param_groups[0]["lr"] = 0.1
        benchmark.repeat_gradient_steps(optimizer, 1, calls)
        assert all((old != new).any() for old, new in zip(before, weights))


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_shares_of_lines(module):
    """All of the time, in the order of the script, and no line told by those of what it calls."""
    lines = benchmark.shares_of_lines(module, module.Config(**SMALL[module]))
    texts = [text for text, _ in lines]
    assert sum(share for _, share in lines) == pytest.approx(1)
    assert all(text in Path(module.__file__).read_text() for text in texts)
    assert not any(re.search(r"\bupdate\w*\(", text) for text in texts)
    assert any("backward()" in text and share > 0 for text, share in lines)


def test_where_the_time_goes(here):
    rows = benchmark.read_results(write(benchmark.RESULTS, row(part="floor", task="dqn, 20,480 steps")))
    told = "`optimizer.step()` 60%<br>`x = a \\| b` 38%<br>all others 2%"
    assert benchmark.shares_line(rows, "dqn, 20,480 steps") == ["dqn, 20,480 steps", told]
    assert benchmark.shares_line(rows, "ppo, 20,480 steps") is None


def test_a_run_that_ends_early(monkeypatch):
    """Its steps are those that were made; and its evaluations, those until then."""
    monkeypatch.setitem(benchmark.TASKS, "early", ("dqn", {**SMALL[dqn], "eval_frequency": 64}, 475, "main"))
    monkeypatch.setattr(dqn.np, "mean", lambda *_: 500.0)
    monkeypatch.setattr(dqn, "evaluate", lambda *_: np.full(3, 500.0))
    result = benchmark.measure_ours(dict(task="early", seed=1101, quick=False))
    assert result["steps"] == 64 and [step for step, *_ in result["grid"]] == [0, 32]
    assert benchmark.curve(result)[-1][0] == 64 and benchmark.stays_solved(result, 475)[0] == 0


def test_quick_runs_everything(tmp_path):
    command = [sys.executable, benchmark.__file__, "--quick", str(tmp_path)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 120
    rows = benchmark.read_results(tmp_path / "results.jsonl")
    assert {part for part, *_ in rows} == set(benchmark.NAMES) and "min left" in done.stderr
    assert all(x["config"] and x["versions"]["torch"] and x["processor"] for x in rows.values())
    measured = [x for x in rows.values() if "grid" in x]
    assert all(len(x["grid"]) == benchmark.POINTS and 1 < x["cpu"] and 50 < x["memory"] for x in measured)
    size = next(x for x in rows.values() if x["task"] == "sac/double replay buffer")
    assert 0 < size["amount"] <= 110
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    assert (tmp_path / "README.md").read_text().count("\n| ---") == 6  # two of the floor


def test_control_c_ends_it_at_once(tmp_path):
    command = [sys.executable, benchmark.__file__, "--quick", str(tmp_path), "--processes", "1"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs are started deaf to it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        while "min left" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and err.endswith("the same command goes on from here\n"), err
    assert len(benchmark.read_results(tmp_path / "results.jsonl")) == 1
