"""Train every script on its tasks, ten seeds each: `python tests/benchmark.py` makes the runs that
tests/results.jsonl lacks, or has of other code or settings, and goes on there after an interruption. With
`--report` it fills the figures into tests/RESULTS.md and README.md and draws demos/learning_curves.png.
"""
import argparse
import ast
import hashlib
import json
import re
import sys
import time
import types
from contextlib import suppress
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import NamedTuple

if current_process().name == "MainProcess":  # those that train should not pay for it
    import pandas as pd
TOP = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = TOP / "tests/results.jsonl", TOP / "demos/learning_curves.png"
COLUMNS = ["table", "run", "seed", "hash", "steps", "cpu", "return", "worst", "curve", "rows"]
sys.path.insert(0, str(TOP))  # for demos.pendulums


class Experiment(NamedTuple):
    """A script to train with several seeds, with settings other than its defaults or edits of its text."""
    table: str  # where it is reported
    name: str
    script: str
    goal: float  # the mean return that counts as solved
    settings: dict = {}
    edits: tuple = ()  # pairs: text of the script, what stands there instead
    seeds: range = range(1301, 1311)
    peer: dict = {}  # settings of Stable-Baselines3, which is then trained in place of the script

    def code(self):
        """The script's text with the edits made, each wherever its text stands."""
        text = (TOP / f"{self.script}.py").read_text()
        for old, new in self.edits:
            assert old in text, f"{self.name}: {self.script}.py has no text {old!r}"
            text = text.replace(old, new)
        return text

    def fingerprint(self):
        """A short hash of what a run depends on: settings, and code without comments and docstrings."""
        code = "" if self.peer else re.sub('""".*?"""', "0", self.code(), flags=re.DOTALL)
        text = f"{ast.dump(ast.parse(code))} {self.settings} {self.peer}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]


SINGLE, DOUBLE = "demos.pendulums:InvertedPendulumPyBullet", "demos.pendulums:InvertedDoublePendulumPyBullet"
PPO_PENDULUM = dict(env_id="Pendulum-v1", gamma=0.9, gae_lambda=0.9, num_envs=16, num_steps=128,
                    num_minibatches=8, learning_rate=1e-3, update_epochs=20, total_timesteps=102_400,
                    eval_frequency=20_480)
TASKS = {name: Experiment("tasks", name, name.split("/")[0], goal, settings) for name, goal, settings in (
    ("dqn/CartPole-v1", 475, {}),
    ("ppo/CartPole-v1", 495, {}),
    ("ppo/Pendulum-v1", -300, PPO_PENDULUM),
    ("ppo/single dense", 950, dict(env_id=f"{SINGLE}Env-v0")),
    ("pofd/single", 475, {}),
    ("pofd/double", 950, dict(env_id=f"{DOUBLE}SparseEnv-v0")),
    ("pofd/mountain car", 90, dict(env_id="MountainCarContinuous-v0")),
    ("sac/double", 950, {}),
    ("sac/single dense", 950, dict(env_id=f"{SINGLE}Env-v0")),
    ("sac/Pendulum-v1", -200, dict(env_id="Pendulum-v1", total_timesteps=10_000)),
)}
DEFAULTS = {task.script: task for task in TASKS.values() if not task.settings}
RANDOM_POLICY = ("for key in spaces]\n", """for key in spaces]
    demo[1] = np.random.default_rng(config.seed).uniform(-1, 1, demo[1].shape).astype(np.float32)
    for stored, action in zip(*demo):  # what the first environment sees of a random policy
        stored[:] = obs[0]
        obs = envs.step(np.tile(action, (config.num_envs, 1)))[0]
    obs, _ = envs.reset(seed=config.seed)
""")
CONTROLS = (  # of POfD: what the demonstrations must beat, and how much their weight matters
    ("lambda = 0, which is PPO", dict(reward_lambda=0.0), ()),
    ("D frozen, a constant bonus", dict(discriminator_learning_rate=0.0), ()),
    ("demonstrations of a random policy", {}, (RANDOM_POLICY,)),
)
PEERS = {  # as in rl-baselines3-zoo, hyperparams/*.yml; lin_ falls to zero
    "dqn/CartPole-v1": dict(
        algorithm="DQN", n_envs=1, total_timesteps=50_000, learning_rate=2.3e-3, batch_size=64, gamma=0.99,
        buffer_size=100_000, learning_starts=1_000, target_update_interval=10, train_freq=256,
        gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]}),
    "ppo/CartPole-v1": dict(
        algorithm="PPO", n_envs=8, total_timesteps=100_000, learning_rate="lin_0.001", clip_range="lin_0.2",
        n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, ent_coef=0.0),
}
EXPERIMENTS = list(TASKS.values())
for task in TASKS["pofd/single"], TASKS["pofd/double"], TASKS["pofd/mountain car"]:
    for name, change, edits in CONTROLS:
        EXPERIMENTS.append(task._replace(table="controls", name=f"{task.name}, {name}", edits=edits,
                                         settings={**task.settings, **change}, seeds=range(1301, 1306)))
for name, peer in PEERS.items():
    EXPERIMENTS.append(TASKS[name]._replace(table="peers", peer=peer, seeds=range(1301, 1306)))


def train_peer(module, config, peer, report):
    """Train Stable-Baselines3, evaluated as often as our script and ended by the same rule."""
    import stable_baselines3 as sb3
    module.torch.set_num_threads(1)
    algorithm, n_envs, total = (peer.pop(key) for key in ("algorithm", "n_envs", "total_timesteps"))
    for key, value in peer.items():
        if str(value).startswith("lin_"):
            peer[key] = lambda left, first=float(value[4:]): left * first
    envs = sb3.common.env_util.make_vec_env(config.env_id, n_envs, seed=config.seed)
    model = getattr(sb3, algorithm)("MlpPolicy", envs, seed=config.seed, device="cpu", **peer)
    threshold = envs.envs[0].spec.reward_threshold
    agent = types.SimpleNamespace(act=lambda obs: model.predict(obs, deterministic=True)[0])

    def unsolved(*_):
        step = model.num_timesteps
        if step % config.eval_frequency >= n_envs and step < total:
            return True
        returns = module.evaluate(agent, config.env_id, 100, config.seed + step)
        report(f"step {step}  return {returns.mean()}")
        if returns.mean() - returns.std() >= threshold:
            returns = module.evaluate(agent, config.env_id, 100, config.seed + step + 1_000)
        return bool(returns.mean() - returns.std() < threshold)

    model.learn(total, callback=unsolved)
    return agent


def run(job):
    """Train and judge an experiment with a seed, in a process made for it: a row for results.jsonl."""
    experiment, seed = job
    module, reports, agent = types.ModuleType(experiment.script), [], None
    module.__file__ = str(TOP / f"{experiment.script}.py")  # demos/ is looked for beside it
    exec(compile(experiment.code(), module.__file__, "exec"), module.__dict__)
    config = module.Config(**experiment.settings, seed=seed)
    with suppress(FloatingPointError):  # a broken script may diverge, and have no agent
        agent = (train_peer(module, config, {**experiment.peer}, reports.append) if experiment.peer
                 else module.main(config, reports.append))
    curve = re.findall(r"step\W+(\d+).*?return\W*?(-?[\d.]+)", "\n".join(map(str, reports)))
    row = {"table": experiment.table, "run": experiment.name, "seed": seed, "hash": experiment.fingerprint(),
           "steps": int(curve[-1][0]) if curve else 0, "cpu": round(time.process_time(), 1)}  # with imports
    if agent is not None:
        returns = module.evaluate(agent, config.env_id, 100, 1_000_000 + seed)
        row |= {"return": round(float(returns.mean()), 1), "worst": round(float(returns.min()), 1)}
    if experiment.table == "tasks":  # for the picture, and for the README what one run prints
        row["curve"] = [(int(step), float(mean)) for step, mean in curve]
        row |= {"rows": reports} if experiment == DEFAULTS["dqn"] and seed == experiment.seeds[0] else {}
    return row


def read():
    """The rows of results.jsonl: a dict for each run."""
    return [json.loads(line) for line in open(RESULTS)] if RESULTS.exists() else []


def run_missing(experiments, seeds, jobs):
    """Make the runs that are not there yet, a few at a time."""
    rows = {tuple(row.values())[:4]: row for row in read()}  # by table, run, seed and hash
    wanted = {(*e[:2], seed, e.fingerprint()): (e, seed) for e in experiments for seed in seeds or e.seeds}
    missing = {key[:3]: job for key, job in wanted.items() if key not in rows}
    RESULTS.write_text("".join(json.dumps(row) + "\n" for key, row in rows.items() if key[:3] not in missing))
    with get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool, open(RESULTS, "a", buffering=1) as file:
        for number, row in enumerate(pool.imap_unordered(run, missing.values()), 1):
            file.write(json.dumps(row) + "\n")
            print(f"{number} of {len(missing)}: {row}", flush=True)


def found(experiments, rows):
    """The experiments that have runs, each with a DataFrame of these: [(experiment, runs)]."""
    frame = pd.DataFrame(rows, columns=COLUMNS).sort_values("seed")
    runs = [(e, frame[(frame.table == e.table) & (frame.run == e.name)]) for e in experiments]
    return [pair for pair in runs if len(pair[1])]


def spread(values, digits=0):
    """The median and, in brackets, the least and the greatest."""
    middle, *ends = (f"{value:,.{digits}f}" for value in (values.median(), values.min(), values.max()))
    return middle.replace("nan", "-") + (f" ({' to '.join(ends)})" if ends[0] != ends[1] else "")


def cells(experiment, runs):
    """What a table says of the runs of an experiment."""
    solved = runs["return"] >= experiment.goal
    failed = [f"{seed} ({mean:,.1f})" for seed, mean in zip(runs.seed[~solved], runs["return"][~solved])]
    return {"goal": f"{experiment.goal:,}", "solved": f"{solved.sum()} of {len(runs)}",
            "return": spread(runs["return"], 1), "worst episode": f"{runs.worst.min():,.1f}",
            "steps": spread(runs.steps[solved]), "CPU s": spread(runs.cpu, 1), "failed": ", ".join(failed)}


def figures(rows):
    """What is known for the markers in the texts, by their names: texts, and tables as lists of dicts."""
    lines = {"tasks": [], "controls": [], "peers": []}
    texts = {f"{script} lines": str(task.code().count("\n")) for script, task in DEFAULTS.items()}
    for experiment, runs in found(EXPERIMENTS, rows):
        flags = [f" --{key.replace('_', '-')} {value}" for key, value in experiment.settings.items()]
        program = "Stable-Baselines3" if experiment.peer else f"`{experiment.script}.py{''.join(flags)}`"
        line = {"task": experiment.name, "program": program, **cells(experiment, runs)}
        lines[experiment.table].append(line)
        if experiment.table == "tasks" and experiment.name in PEERS:
            lines["peers"].append(line)
        if experiment.table == "controls":
            texts[experiment.name] = line["solved"]
        if experiment == DEFAULTS["dqn"]:
            printed = [line for reports in runs.rows.dropna() for line in reports]
            texts["rows"] = "\n".join(["\n```", *printed[:2], "...", *printed[-1:], "```\n"])
        if experiment in DEFAULTS.values():
            texts[experiment.script] = "{solved} seeds, {steps} steps, {CPU s} CPU seconds".format(**line)
    return {**texts, **lines, "peers": sorted(lines["peers"], key=lambda line: line["task"])}


def fill(text, figures):
    """The text with the figures between their markers: `<!-- results: NAME -->...<!-- end -->`."""
    for name, figure in figures.items():
        if not isinstance(figure, str):
            figure = f"\n\n{pd.DataFrame(figure).to_markdown(index=False, disable_numparse=True)}\n\n"
        pattern = f"(<!-- results: {re.escape(name)} -->).*?(?=<!-- end -->)"
        text = re.sub(pattern, lambda match, figure=figure: match[1] + figure, text, flags=re.DOTALL)
    return text


def draw(rows):
    """The greedy return against steps: a line for each seed, up to where training ended itself."""
    from matplotlib import pyplot as plt
    figure = plt.figure(figsize=(9, 8), layout="constrained")
    for number, (task, runs) in enumerate(panels := found(TASKS.values(), rows), 1):
        axis = figure.add_subplot(-(-len(panels) // 3), 3, number)
        for curve, *end in zip(runs.curve, runs.steps, runs["return"]):
            axis.plot(*zip(*curve, end), ".-C0" if end[1] >= task.goal else ".-C3", lw=0.7, markevery=[-1])
        axis.axhline(task.goal, color="gray", linestyle="--")
        axis.set(title=task.name, xlabel="environment steps", ylabel="greedy return")
    figure.savefig(PICTURE, dpi=150)


def main(experiments, figures):
    """The command line, also that of break_it.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="", help="such as 1301-1310; by default each experiment's own")
    parser.add_argument("--only", default="", help="the experiments whose table or name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--report", action="store_true", help="write down what is there, run nothing")
    flags = parser.parse_args()
    if flags.report:
        for path in TOP / "tests/RESULTS.md", TOP / "README.md":
            path.write_text(fill(path.read_text(), figures(read())))
        return draw(read())
    ends = [int(seed) for seed in flags.seeds.split("-") if seed]
    seeds = ends and range(ends[0], ends[-1] + 1)
    run_missing([e for e in experiments if flags.only in f"{e.table}: {e.name}"], seeds, flags.jobs)


if __name__ == "__main__":
    main(EXPERIMENTS, figures)
