"""Make the runs of experiments.py that tests/results.jsonl lacks: `python tests/benchmark.py`.

Each run is a process of its own, which adds a line to that file. Stop it whenever you like: it
goes on where it stopped. `--report` writes the figures and draws the pictures, and runs nothing.
"""
import argparse
import ast
import hashlib
import inspect
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from statistics import median

import numpy as np

from experiments import EXPERIMENTS, train_peer
from demos.record import ROOT, load_script

RESULTS = ROOT / "tests/results.jsonl"
HOME = "dqn/CartPole-v1", "ppo/CartPole-v1", "pofd/swing-up", "sac/double"  # in README.md
TABLES = ["tasks", "controls", "peers", "elsewhere", "departures", "break it"]


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
    script = ROOT / f"{experiment.script}.py"
    config = load_script(script).Config(**experiment.settings)
    facts = [sorted(experiment.settings.items()), sorted(experiment.peer.items())]
    functions = [experiment.change, experiment.recording, experiment.peer and train_peer]
    code = [inspect.getsource(function) for function in functions if function]
    if experiment.peer:
        facts += [config.total_timesteps, config.eval_frequency, config.eval_episodes]
    else:
        code.append(script.read_text(encoding="utf-8"))
    if experiment.script == "pofd" and not experiment.peer:
        demo = config.demo or f"demos/{config.env_id.split(':')[-1]}.npz"
        facts.append((ROOT / demo).read_bytes())
    if config.env_id.startswith("demos.pendulums:"):
        code.append((ROOT / "demos/pendulums.py").read_text(encoding="utf-8"))
    facts += [essence(ast.parse(text)) for text in code]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def run(job):
    """Train and judge an agent, in a process made for it: a row for results.jsonl."""
    experiment, seed = job
    os.chdir(ROOT)  # where the settings' files are
    row = {"table": experiment.table, "run": experiment.name, "seed": seed,
           "fingerprint": fingerprint(experiment)}
    module, reports = load_script(ROOT / f"{experiment.script}.py"), []
    config = module.Config(**experiment.settings, seed=seed)
    if experiment.change:
        experiment.change(module)
    with tempfile.TemporaryDirectory() as folder:
        if experiment.recording:
            np.savez(f"{folder}/demo.npz", **experiment.recording())
            config = replace(config, demo=f"{folder}/demo.npz")
        if experiment.peer:
            agent = train_peer(module, config, experiment.peer, reports.append)
        else:
            agent = module.main(config, reports.append)
    cpu = time.process_time()  # of the whole process, imports included
    episodes = 20 if experiment.table == "elsewhere" else 100
    returns = module.evaluate(agent, config.env_id, episodes, 1_000_000 + seed)
    curve = [[report["step"], round(report["return"], 2)] for report in reports]
    steps = curve[-1][0] if curve else 0
    return {**row, "steps": steps, "cpu": round(cpu, 1), "return": round(returns.mean().item(), 2),
            "worst": round(returns.min().item(), 2), "curve": curve,
            "solved_by_itself": 0 < steps < config.total_timesteps}


def make(jobs, processes):
    """Make runs, each in a new process, and add a row to results.jsonl as soon as one ends."""
    with get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(run, jobs):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['table']}: {row['run']}, seed {row['seed']}: return {row['return']} "
                  f"after {row['steps']:,} steps, {row['cpu']} CPU s", flush=True)


def read():
    """The rows of results.jsonl, by table, run and seed; the newest, if there are several."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(row["table"], row["run"], row["seed"]): row for row in map(json.loads, lines)}


def to_do(experiments, seeds=None):
    """The runs that are missing, and those of other code or settings, lists of (e, seed)."""
    rows, missing, stale = read(), [], []
    for e in experiments:
        today = fingerprint(e)
        for seed in seeds or e.seeds:
            row = rows.get((e.table, e.name, seed))
            if row is None:
                missing.append((e, seed))
            elif row.get("fingerprint") != today:
                stale.append((e, seed))
    return missing, stale


def complaint(stale):
    """One line that names the stale runs."""
    names = "; ".join(dict.fromkeys(f"{e.table}: {e.name}" for e, _ in stale))
    return f"{len(stale)} runs are stale, make them by `python tests/benchmark.py`: {names}"


def found():
    """The experiments that have runs, each with these: [(experiment, rows)]."""
    rows = read()
    runs = [[rows.get((e.table, e.name, seed)) for seed in e.seeds] for e in EXPERIMENTS]
    pairs = [(e, list(filter(None, some))) for e, some in zip(EXPERIMENTS, runs)]
    return [(e, some) for e, some in pairs if some]


def spread(values):
    """The median and, in brackets, the least and the greatest."""
    middle, low, high = (f"{f(values):,.0f}" for f in (median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def cells(e, runs):
    """What a table says of an experiment."""
    line = {"run": e.name}
    if e.table == "tasks":
        line["goal"] = f"{e.goal:,}"
    if e.goal is not None:
        line["solved"] = f"{sum(run['return'] >= e.goal for run in runs)} of {len(runs)}"
    line["return"] = spread([run["return"] for run in runs])
    line["steps"] = spread([run["steps"] for run in runs])
    line["CPU s"] = spread([run["cpu"] for run in runs])
    return line


def figures():
    """What stands between the markers of the texts: {(file, marker): text}."""
    from tabulate import tabulate
    lines = {(e.table, e.name): cells(e, runs) for e, runs in found()}
    tables = {("README.md", "results"): []}
    for table in TABLES:
        shown = {}
        for key in [key for key in lines if key[0] == table]:
            task = "tasks", key[1].split(",")[0]  # stands above what is compared with it
            for name in (task, key):
                if name in lines:
                    shown[name] = {column: cell for column, cell in lines[name].items()
                                   if column != "goal" or table == "tasks"}
        tables["tests/RESULTS.md", f"results: {table}"] = list(shown.values())
    for line in tables["tests/RESULTS.md", "results: tasks"]:
        script, task = line["run"].split("/")
        if line["run"] not in HOME:
            continue
        length = (ROOT / f"{script}.py").read_text(encoding="utf-8").count("\n")
        start = {"script": f"[`{script}.py`]({script}.py)", "lines": length, "task": task}
        end = {name: line[name] for name in ("solved", "steps", "CPU s")}
        tables["README.md", "results"].append(start | end)
    return {place: tabulate(lines, "keys", "github", disable_numparse=True) or "No runs yet."
            for place, lines in tables.items()}


def fill(text, marker, figure):
    """The text with a figure between `<!-- marker -->` and `<!-- end -->`."""
    before, start, rest = text.partition(f"<!-- {marker} -->")
    old, end, after = rest.partition("<!-- end -->")
    assert end, f"there is no <!-- {marker} -->...<!-- end -->"
    return f"{before}{start}\n\n{figure}\n\n{end}{after}"


def draw(path, panels):
    """Plot return against steps, a line for each run: {title: (goal, {label: runs})}."""
    from matplotlib.figure import Figure
    columns, rows = min(3, len(panels)), -(-len(panels) // 3)
    figure = Figure((9 + columns, 3 * rows + 2), layout="constrained")
    for number, (title, (goal, groups)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set(title=title, xlabel="environment steps", ylabel="return of the greedy policy")
        axes.axhline(goal, color="gray", linestyle="--")
        for color, (label, runs) in enumerate(groups.items()):
            for run in runs:
                points = [*run["curve"], (run["steps"], run["return"])]
                axes.plot(*zip(*points), f".-C{color}", linewidth=0.7, markevery=[-1])
            axes.lines[-1].set_label(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def report():
    """Write the figures and draw the pictures, unless some are of other code."""
    stale = to_do(EXPERIMENTS)[1]
    if stale:
        sys.exit(complaint(stale))
    for (path, marker), figure in figures().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        (ROOT / path).write_text(fill(text, marker, figure), encoding="utf-8")
    tasks = {f"{e.name}: {cells(e, runs)['solved']}": (e.goal, {"a seed": runs})
             for e, runs in found() if e.table == "tasks"}
    draw(ROOT / "demos/learning_curves.png", tasks)
    swing_up = {e.name.partition(", ")[2] or "POfD": runs for e, runs in found()
                if e.table in ("tasks", "controls") and e.name.startswith("pofd/swing-up")}
    draw(ROOT / "demos/pofd_controls.png", {"the swing-up": (850, swing_up)})


def main(argv=None):
    parser = argparse.ArgumentParser("benchmark.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", default="", help='the experiments with this in "table: name"')
    add("--seeds", help="such as 3001-3010, in place of each experiment's own")
    add("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    add("--report", action="store_true", help="write the figures, run nothing")
    flags = parser.parse_args(argv)
    ends = [int(seed) for seed in flags.seeds.split("-")] if flags.seeds else []
    if flags.report:
        return report()
    chosen = [e for e in EXPERIMENTS if flags.only in f"{e.table}: {e.name}"]
    missing, stale = to_do(chosen, ends and range(ends[0], ends[-1] + 1))
    print(f"{len(missing)} runs are missing, {len(stale)} are stale", flush=True)
    make(missing + stale, flags.jobs)


if __name__ == "__main__":
    main()
