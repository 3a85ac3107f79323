"""Make the runs that tests/results.jsonl lacks: `python tests/benchmark.py`.

experiments.jsonl says what is trained: a script on a task, or the same with something different.
That may be settings, changes (functions below; the first parameter of each is what it replaces),
or a peer (settings of Stable-Baselines3, which is then trained in place of the script). A run is
solved if its mean return reaches the goal.
Each run is a process of its own. Stop it whenever you like: it goes on where it stopped.
"""
import argparse
import ast
import hashlib
import inspect
import json
import os
import re
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from tabulate import tabulate

sys.path.insert(0, f"{os.path.dirname(os.path.abspath(__file__))}/..")
from demos.record import ROOT, SWING_UP, load_script, record, swing_up

RESULTS = ROOT / "tests/results.jsonl"
HOME = "dqn/CartPole-v1", "ppo/CartPole-v1", "pofd/swing-up", "sac/double"  # in README.md


def no_failure(td_loss, q_network, target_network, batch, gamma):
    """Where an episode fails, it looks like the time limit, and bootstrapping goes on."""
    batch = batch._replace(terminated=torch.zeros_like(batch.terminated))
    return td_loss(q_network, target_network, batch, gamma)


def no_layer_norm(QNetwork, *args):
    network = QNetwork(*args)
    network[1] = network[4] = torch.nn.Identity()
    return network


def copied_target(td_loss, q_network, target_network, *args):
    """The target network is a copy made every 500 gradient steps, as in the paper. tau is 0."""
    target_network.calls = getattr(target_network, "calls", 0) + 1
    if target_network.calls % 500 == 1:
        target_network.load_state_dict(q_network.state_dict())
    return td_loss(q_network, target_network, *args)


def no_clipping(main, config, report):
    with patch("torch.nn.utils.clip_grad_norm_"):
        return main(config, report)


def no_ending(main, config, report):
    env_id = gym.make(config.env_id).spec.id  # without its module, which is imported now
    with patch.object(gym.registry[env_id], "reward_threshold", None):
        return main(config, report)


def random_warm_up(ReplayBuffer):
    """Before it learns, SAC has seen 50 episodes of random actions on the double pendulum."""
    data, _ = record(lambda obs: obs[:, :1], EXPERIMENTS["sac/double"]["settings"]["env_id"],
                     episodes=50, steps=None, noise=0, epsilon=1, seed=np.random.randint(10**9))
    obs, action, reward, terminal, _ = data.values()
    return ReplayBuffer(zip(obs, action, 0.1 * reward, np.roll(obs, -1, 0), terminal))


def random_demonstrations(load_demonstrations, *_):
    data, _ = record(lambda obs: np.zeros((len(obs), 1)), SWING_UP, episodes=5, steps=300,
                     noise=0, epsilon=1, seed=3000)
    return torch.tensor(np.hstack([data["observations"], data["actions"]]))


def car_demonstrations(load_demonstrations, *_):
    data, _ = record(lambda obs: np.sign(obs[:, 1:]), "MountainCarContinuous-v0", episodes=5,
                     steps=300, noise=0.3, epsilon=0.1, seed=3000)
    return torch.tensor(np.hstack([data["observations"], data["actions"]]))


def one_demonstration(load_demonstrations, *args):
    return load_demonstrations(*args)[:300]  # of five with 300 steps each


def two_failures(load_demonstrations, *args):
    episodes = load_demonstrations(*args).split(300)
    return torch.cat([episodes[2], episodes[4]])  # they earn nothing


def teacher(main, config, report):
    return SimpleNamespace(act=swing_up)  # the rule that was recorded, without noise


def behaviour_cloning(main, config, report):
    """No environment: the policy's mean learns the actions of the demonstrations."""
    agent = main(replace(config, total_timesteps=0), report)
    data = np.load(ROOT / "demos/InvertedPendulumSwingupPyBulletSparseEnv-v0.npz")
    obs, action = torch.tensor(data["observations"]), torch.tensor(data["actions"])
    optimizer = torch.optim.Adam(agent.actor.parameters(), lr=1e-3)
    for _ in range(5_000):
        index = torch.randint(len(obs), (128,))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(agent.actor(obs[index]), action[index]).backward()
        optimizer.step()
    return agent


def train_peer(module, config, peer, report):
    """Train Stable-Baselines3, evaluated as often as the script and ended by the same rule."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    torch.set_num_threads(1)
    settings = {"n_envs": 1, **peer}
    algorithm = getattr(stable_baselines3, settings.pop("algorithm"))
    envs = make_vec_env(config.env_id, settings.pop("n_envs"), seed=config.seed)
    for name, first in settings.pop("falling", {}).items():  # to zero
        settings[name] = lambda left, first=first: left * first
    model = algorithm("MlpPolicy", envs, seed=config.seed, device="cpu", **settings)
    agent = SimpleNamespace(act=lambda obs: model.predict(obs, deterministic=True)[0])
    threshold = envs.envs[0].spec.reward_threshold or np.inf

    def goes_on(*_):
        step = model.num_timesteps
        if step % config.eval_frequency >= envs.num_envs and step < config.total_timesteps:
            return True
        returns = module.evaluate(agent, config.env_id, config.eval_episodes, config.seed + step)
        report({"step": step, "return": returns.mean().item()})
        if np.mean(returns >= threshold) >= 0.99:
            returns = module.evaluate(agent, config.env_id, 100, config.seed + step + 10**6)
        return bool(np.mean(returns >= threshold) < 0.99) and step < config.total_timesteps
    model.learn(config.total_timesteps, callback=goes_on)
    return agent


EXPERIMENTS = {}
for line in (ROOT / "tests/experiments.jsonl").read_text("utf-8").splitlines():
    own = json.loads(line)
    task = EXPERIMENTS[own["run"].split(",")[0]] if "," in own["run"] else {"settings": {}}
    settings = task["settings"] | own.get("settings", {})
    script = ROOT / f"{own['run'].split('/')[0]}.py"
    EXPERIMENTS[own["run"]] = task | own | {"settings": settings, "script": script}


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
    config = load_script(experiment["script"]).Config(**experiment["settings"])
    peer, changes = experiment.get("peer", {}), experiment.get("change", "").split()
    facts = [sorted(experiment["settings"].items()), sorted(peer.items())]
    code = [inspect.getsource(globals()[change]) for change in changes]
    if peer:
        code.append(inspect.getsource(train_peer))
        facts += [config.total_timesteps, config.eval_frequency, config.eval_episodes]
    else:
        code.append(experiment["script"].read_text("utf-8"))
        if hasattr(config, "demo"):
            demo = ROOT / config.demo.replace("{}", config.env_id.split(":")[-1])
            if demo.is_file():  # a change may make its own
                facts.append(demo.read_bytes())
    if config.env_id.startswith("demos.pendulums:"):
        code.append((ROOT / "demos/pendulums.py").read_text("utf-8"))
    facts += [essence(ast.parse(text)) for text in code]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def run(job):
    """Train and judge an agent, in a process made for it: a row for results.jsonl."""
    experiment, seed = job
    os.chdir(ROOT)  # where the demonstrations are
    row = {"table": experiment["table"], "run": experiment["run"], "seed": seed,
           "fingerprint": fingerprint(experiment)}
    module, reports = load_script(experiment["script"]), []
    config = module.Config(**experiment["settings"], seed=seed)
    for change in experiment.get("change", "").split():
        name = inspect.getfullargspec(globals()[change]).args[0]
        setattr(module, name, partial(globals()[change], getattr(module, name)))
    if "peer" in experiment:
        agent = train_peer(module, config, experiment["peer"], reports.append)
    else:
        agent = module.main(config, reports.append)
    cpu = time.process_time()  # of the whole process, imports included
    episodes = 20 if row["table"] == "elsewhere" else 100
    returns = module.evaluate(agent, config.env_id, episodes, 1_000_000 + seed)
    curve = [[report["step"], round(report["return"], 2)] for report in reports]
    steps = curve[-1][0] if curve else 0
    return {**row, "steps": steps, "cpu": round(cpu, 1), "return": round(returns.mean().item(), 2),
            "worst": round(returns.min().item(), 2), "curve": curve}


def make(jobs, processes):
    """Make runs, each in a new process, and add a row to results.jsonl as soon as one ends."""
    with get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(run, jobs):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(*(row[key] for key in ("run", "seed", "return", "steps", "cpu")), flush=True)


def read(experiments, seeds=None):
    """Each run with its newest row, or None: [(experiment, seed, row)]."""
    lines = RESULTS.read_text("utf-8").splitlines()
    rows = {(row["table"], row["run"], row["seed"]): row for row in map(json.loads, lines)}
    return [(e, seed, rows.get((e["table"], e["run"], seed)))
            for e in experiments for seed in seeds or range(e["seeds"][0], e["seeds"][1] + 1)]


def to_do(experiments, seeds=None):
    """The runs that are missing, and those of other code or settings, as (experiment, seed)."""
    today = {e["run"]: fingerprint(e) for e in experiments}
    runs = read(experiments, seeds)
    missing = [(e, seed) for e, seed, row in runs if row is None]
    stale = [(e, seed) for e, seed, row in runs if row and row["fingerprint"] != today[e["run"]]]
    return missing, stale


def refuse_stale_runs():
    """End with one line that names the published runs of other code, if there are any."""
    stale = to_do(EXPERIMENTS.values())[1]
    names = "; ".join(dict.fromkeys(e["run"] for e, _ in stale))
    if stale:
        sys.exit(f"{len(stale)} runs are stale, make them by python tests/benchmark.py: {names}")


def found():
    """The rows of each experiment that has some: {run: rows}."""
    runs = {}
    for experiment, _, row in read(EXPERIMENTS.values()):
        if row:
            runs.setdefault(experiment["run"], []).append(row)
    return runs


def cells(run, rows):
    """A line of a table: medians and, in brackets, the least and the greatest of all seeds."""
    line, goal = {"run": run}, EXPERIMENTS[run].get("goal")
    if goal is not None:
        solved = sum(row["return"] >= goal for row in rows)
        line |= {"goal": goal, "solved": f"{solved} of {len(rows)}"}
    for column, key in ("return", "return"), ("steps", "steps"), ("CPU s", "cpu"):
        values = [row[key] for row in rows]
        middle, low, high = (f"{round(pick(values)):,}" for pick in (np.median, min, max))
        line[column] = middle if low == high else f"{middle} ({low} to {high})"
    return line


def table(name):
    """The lines of a table. A task stands above what is compared with it."""
    runs, lines = found(), {}
    for run in runs:
        if EXPERIMENTS[run]["table"] == name:
            task = run.split(",")[0]
            lines |= {key: cells(key, runs[key]) for key in (task, run) if key in runs}
    return [{column: line[column] for column in line if column != "goal" or name == "tasks"}
            for line in lines.values()]


def fill(text):
    """The text with today's table between each `<!-- results... -->` and `<!-- end -->`."""
    def block(match):
        name = match[1].removeprefix("results: ")
        lines = table(name)
        if name == "results":  # in README.md
            lines = [line for line in table("tasks") if line["run"] in HOME]
            for line in lines:
                line["lines"] = EXPERIMENTS[line["run"]]["script"].read_text("utf-8").count("\n")
        figure = tabulate(lines, "keys", "github", disable_numparse=True) or "No runs yet."
        return f"<!-- {match[1]} -->\n\n{figure}\n\n<!-- end -->"
    return re.sub(r"<!-- (results.*?) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


def draw(path, columns, panels):
    """Plot return against steps, a line for each run: [[name of an experiment, ...], ...]."""
    from matplotlib.figure import Figure
    runs, rows = found(), -(-len(panels) // columns)
    figure = Figure((4 * columns + 5, 3 * rows + 3), layout="constrained")
    for number, names in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number, xlabel="environment steps")
        axes.axhline(EXPERIMENTS[names[0]]["goal"], color="gray", linestyle="--")
        for color, name in enumerate(names):
            for row in runs[name]:
                points = [*row["curve"], (row["steps"], row["return"])]
                axes.plot(*zip(*points), f".-C{color}", linewidth=0.7, markevery=[-1])
            axes.lines[-1].set_label(name)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    figure.savefig(path, dpi=120)


def report():
    """Write the tables and draw the pictures, unless some runs are of other code."""
    refuse_stale_runs()
    for path in ROOT / "README.md", ROOT / "tests/RESULTS.md":
        path.write_text(fill(path.read_text("utf-8")), "utf-8")
    draw(ROOT / "demos/learning_curves.png", 3, [[line["run"]] for line in table("tasks")])
    swing_up = [line["run"] for line in table("controls") if "swing-up" in line["run"]]
    draw(ROOT / "demos/pofd_controls.png", 1, [swing_up] if swing_up else [])


def main(argv=None):
    parser = argparse.ArgumentParser("benchmark.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", default="", help='the experiments with this in "table: name"')
    add("--seeds", default="", help="such as 3001-3010, in place of each experiment's own")
    add("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    add("--report", action="store_true", help="write tables and pictures, run nothing")
    flags = parser.parse_args(argv)
    if flags.report:
        return report()
    first, _, last = flags.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1) if first else None
    chosen = [e for e in EXPERIMENTS.values() if flags.only in f"{e['table']}: {e['run']}"]
    missing, stale = to_do(chosen, seeds)
    print(f"{len(missing)} runs are missing, {len(stale)} are stale", flush=True)
    make(missing + stale, flags.jobs)


if __name__ == "__main__":
    main()
