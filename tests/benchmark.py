"""Train all of experiments.py with all seeds: `python tests/benchmark.py` makes the missing runs.

Each run is a process of its own and adds a line to tests/results.jsonl. Stop it whenever you like:
it goes on where it stopped. `--report` writes the figures into README.md and tests/RESULTS.md.
"""
import argparse
import ast
import hashlib
import inspect
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from statistics import median

import numpy as np

from experiments import EXPERIMENTS, TASKS, TOP, train_peer
from demos.record import load_script

RESULTS = TOP / "tests/results.jsonl"


def load(script):
    """Import a script, anew at each call, so that a change of one leaves the others alone."""
    return load_script(TOP / f"{script}.py")


def essence(node):
    """Code as nested lists, without comments, docstrings, and what differs between Pythons."""
    if isinstance(node, list):
        return [essence(item) for item in node
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, [(name, essence(value)) for name, value in fields]]


def fingerprint(experiment):
    """A hash of what a run depends on: settings, code, and demonstrations."""
    config = load(experiment.script).Config(**experiment.settings)
    facts = [sorted(experiment.settings.items()), sorted(experiment.peer.items())]
    functions = [experiment.change, experiment.recording, experiment.peer and train_peer]
    code = [inspect.getsource(function) for function in functions if function]
    if experiment.peer:
        facts += [config.total_timesteps, config.eval_frequency, config.eval_episodes]
    else:
        code.append((TOP / f"{experiment.script}.py").read_text(encoding="utf-8"))
    if experiment.script == "pofd" and not experiment.peer:
        demo = config.demo or f"demos/{config.env_id.split(':')[-1]}.npz"
        facts.append((TOP / demo).read_bytes())
    if config.env_id.startswith("demos.pendulums:"):
        code.append((TOP / "demos/pendulums.py").read_text(encoding="utf-8"))
    facts += [essence(ast.parse(text)) for text in code]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def run(experiment, seed):
    """Train and judge an agent in this process: a row for results.jsonl."""
    row = {"table": experiment.table, "run": experiment.name, "seed": seed,
           "fingerprint": fingerprint(experiment)}
    module, reports = load(experiment.script), []
    if experiment.change:
        experiment.change(module)
    config = module.Config(**{"seed": seed, **experiment.settings})
    with tempfile.TemporaryDirectory() as folder:
        if experiment.recording:
            np.savez(f"{folder}/demo.npz", **experiment.recording())
            config = replace(config, demo=f"{folder}/demo.npz")
        if experiment.peer:
            agent = train_peer(module, config, experiment.peer, reports.append)
        else:
            agent = module.main(config, reports.append)
    cpu = time.process_time()  # of the whole process, imports included
    curve = [[report["step"], round(report["return"], 2)] for report in reports]
    steps = curve[-1][0] if curve else 0
    episodes = 20 if experiment.table == "elsewhere" else 100
    returns = module.evaluate(agent, config.env_id, episodes, 1_000_000 + seed)
    return {**row, "steps": steps, "cpu": round(cpu, 1), "return": round(returns.mean().item(), 2),
            "worst": round(returns.min().item(), 2), "curve": curve,
            "solved_by_itself": bool(curve) and steps < config.total_timesteps}


def read():
    """The rows of results.jsonl, by table, run and seed; of two that are alike, the newer."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {(row["table"], row["run"], row["seed"]): row for row in rows}


def to_do(experiments, seeds=None):
    """The runs that are missing and those that are stale, two lists of (experiment, seed)."""
    rows, missing, stale = read(), [], []
    for experiment in experiments:
        now = fingerprint(experiment)
        for seed in seeds or experiment.seeds:
            row = rows.get((experiment.table, experiment.name, seed))
            if row is None:
                missing.append((experiment, seed))
            elif row.get("fingerprint") != now:
                stale.append((experiment, seed))
    return missing, stale


def start(experiment, seed):
    """Begin a run in a new process, which writes its row itself."""
    return subprocess.Popen([sys.executable, __file__, "--run", f"{experiment.table}: {experiment.name}",
                             "--seeds", str(seed)], cwd=TOP)


def make(runs, jobs):
    """Make runs, a few at a time."""
    waiting, running = list(runs), []
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < jobs:
            running.append(start(*waiting.pop(0)))
        time.sleep(0.1)


def main(argv=None):
    parser = argparse.ArgumentParser("benchmark.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", default="", help='the experiments with this in "table: name"')
    add("--seeds", help="such as 3001-3010, in place of each experiment's own")
    add("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    add("--report", action="store_true", help="write the figures, run nothing")
    add("--run", help=argparse.SUPPRESS)  # one experiment in this process
    flags = parser.parse_args(argv)
    seeds = None
    if flags.seeds:
        first, _, last = flags.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
    if flags.run:
        experiment, = [e for e in EXPERIMENTS if f"{e.table}: {e.name}" == flags.run]
        row = run(experiment, seeds[0])
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{flags.run} {row['seed']}: return {row['return']} after {row['steps']:,} steps, "
              f"{row['cpu']} CPU s", flush=True)
        return
    chosen = [e for e in EXPERIMENTS if flags.only in f"{e.table}: {e.name}"]
    missing, stale = to_do(chosen, seeds)
    print(f"{len(missing)} runs are missing, {len(stale)} are stale", flush=True)
    make(missing + stale, flags.jobs)


if __name__ == "__main__":
    main()
