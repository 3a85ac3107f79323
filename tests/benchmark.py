"""Every figure of the README: `python tests/benchmark.py` runs each script on each of its tasks over ten
seeds that nothing was tuned on, two processes at a time, and appends a row a run to tests/results.jsonl.

Interrupt it when you like: the same command goes on where it stopped. Other parts, alone or together:
--controls (POfD's, and further tasks), --peers (Stable-Baselines3), --floor (only the environment's and the
gradient steps), --speed (cost against size); then --plot and --readme make the picture and the tables of what
is there. CPU seconds count from the start of the process, imports included; evaluations stop the clocks.
"""

import argparse
import copy
import dataclasses
import gc
import importlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_hook as on_leaving
from torch.nn.modules.module import register_module_forward_pre_hook as on_entering
from torch.optim.optimizer import register_optimizer_step_post_hook as on_step

START = time.perf_counter() - time.process_time()  # of the process: the imports so far kept the core busy
TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
RESULTS, PICTURE, README = TOP / "tests/results.jsonl", TOP / "demos/learning_curves.png", TOP / "README.md"
MARKERS = "<!-- benchmark: start -->\n", "<!-- benchmark: end -->\n"
POINTS, GRID_EPISODES, FINAL_EPISODES = 20, 20, 100  # evaluations on the way, their episodes; at the end
NETWORKS = {"dqn": "QNetwork", "ppo": "ActorCritic", "pofd": "ActorCritic", "sac": "Actor"}
PENDULUM, DOUBLE = "InvertedPendulumPyBullet", "InvertedDoublePendulumPyBullet"
PPO_PENDULUM = dict(env_id="Pendulum-v1", gamma=0.9, num_envs=8, num_steps=128, num_minibatches=8)
TASKS = {  # name: script, settings other than its defaults, return that counts as solved, part
    "dqn/CartPole-v1": ("dqn", {}, 475, "main"),
    "ppo/CartPole-v1": ("ppo", {}, 475, "main"),
    "ppo/Pendulum-v1": ("ppo", {**PPO_PENDULUM, "total_timesteps": 102_400}, -300, "main"),
    "ppo/single dense": ("ppo", {"env_id": f"sac:{PENDULUM}Env-v0"}, 950, "main"),
    "pofd/single": ("pofd", {}, 475, "main"),
    "pofd/double": ("pofd", {"env_id": f"{DOUBLE}SparseEnv-v0"}, 950, "main"),
    "pofd/mountain car": ("pofd", {"env_id": "MountainCarContinuous-v0"}, 90, "main"),
    "sac/double": ("sac", {}, 950, "main"),
    "sac/single dense": ("sac", {"env_id": f"{PENDULUM}Env-v0"}, 950, "main"),
    "sac/Pendulum-v1": ("sac", {"env_id": "Pendulum-v1", "total_timesteps": 10_000}, -200, "main"),
    "sac/double dense": ("sac", {"env_id": f"{DOUBLE}Env-v0"}, 9100, "controls"),
    "sac/single": ("sac", {"env_id": f"{PENDULUM}SparseEnv-v0"}, 475, "controls"),
}  # fmt: skip
CONTROLS = {  # what the demonstrations must beat, and how much lambda matters; "x10" is ten times the setting
    "lambda = 0 (PPO)": {"reward_lambda": 0.0},
    "D frozen (a constant bonus)": {"discriminator_learning_rate": 0.0},
    "demonstrations of a random policy": {"demo": "random"},
    "lambda / 10": {"reward_lambda": "x0.1"},
    "lambda x 10": {"reward_lambda": "x10"},
}
for name, (script, changes, threshold, _) in [task for task in TASKS.items() if task[0].startswith("pofd")]:
    for control, change in CONTROLS.items():
        TASKS[f"{name}, {control}"] = (script, {**changes, **change}, threshold, "controls")
TASKS["pofd/double, no restarts"] = ("pofd", {**TASKS["pofd/double"][1], "restarts": 0.0}, 950, "controls")
# Stable-Baselines3 with the settings of github.com/DLR-RM/rl-baselines3-zoo, hyperparams/{ppo,dqn,sac}.yml,
# for CartPole-v1, Pendulum-v1 and InvertedDoublePendulumBulletEnv-v0 (there dense, 500,000 steps; here ours).
PEERS = {
    "ppo/CartPole-v1": dict(
        algorithm="PPO", n_envs=8, total_timesteps=100_000, n_steps=32, batch_size=256, gae_lambda=0.8,
        gamma=0.98, n_epochs=20, ent_coef=0.0, learning_rate="lin_0.001", clip_range="lin_0.2"),
    "dqn/CartPole-v1": dict(
        algorithm="DQN", n_envs=1, total_timesteps=50_000, learning_rate=2.3e-3, batch_size=64,
        buffer_size=100_000, learning_starts=1_000, gamma=0.99, target_update_interval=10, train_freq=256,
        gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]}),
    "sac/Pendulum-v1": dict(algorithm="SAC", n_envs=1, total_timesteps=20_000, learning_rate=1e-3),
    "sac/double": dict(
        algorithm="SAC", n_envs=1, total_timesteps=40_000, learning_rate=7.3e-4, buffer_size=300_000,
        batch_size=256, ent_coef="auto", gamma=0.98, tau=0.02, train_freq=8, gradient_steps=8,
        learning_starts=10_000, use_sde=True,  # which the algorithm hands on to its policy
        policy_kwargs={"log_std_init": -3, "net_arch": [400, 300], "use_sde": True}),
}  # fmt: skip
SHORT = {"total_timesteps": 20_480, "eval_frequency": 0}  # to the last step
FLOORS = {f"{script}, 20,480 steps": (script, SHORT) for script in NETWORKS}
SIZES = {
    f"ppo, {n} environments": ("ppo", {**SHORT, "num_envs": n, "num_steps": 1_024 // n})
    for n in (1, 8, 64, 512)
}
MILLION = {"buffer_size": 1_000_000, "total_timesteps": 1_000_000}
SIZES |= {f"{name} replay buffer": (name[:3], MILLION) for name in ("dqn/CartPole-v1", "sac/double")}
NAMES = {part: [name for name, task in TASKS.items() if task[3] == part] for part in ("main", "controls")}
NAMES |= {"peers": list(PEERS), "floor": list(FLOORS), "speed": list(SIZES)}
QUICK_STEPS = 2_048
LEAST_SHARE = 0.03  # of the time, for a line to be told
QUICK = ["ppo/CartPole-v1", "pofd/single, demonstrations of a random policy", "ppo, 64 environments"]
QUICK += ["sac/double replay buffer", "ppo, 20,480 steps"]
RUN = ["steps", "cpu", "wall", "memory", "grid", "final", "worst"]  # what is measured, part by part
FIELDS = {"main": RUN, "controls": RUN, "peers": RUN, "speed": ["amount", "unit"]}
FIELDS["floor"] = ["cpu", "env_cpu", "gradient_cpu", "acting_cpu", "steps", "updates", "lines"]
warnings.filterwarnings("ignore", message=".*Overriding environment")  # sac.py and pofd.py have the same ones


def load(name, seed, quick=False):
    """The script's module and the Config of a task. ValueError if its settings don't fit the script."""
    script, changes = {**TASKS, **FLOORS, **SIZES}[name][:2]
    module = importlib.import_module(script)
    changes = {**changes, "seed": seed, **({"total_timesteps": QUICK_STEPS} if quick else {})}
    for key, value in changes.items():
        if not hasattr(module.Config, key):
            raise ValueError(f"{name}: {script}.py has no setting {key}")
        if str(value)[0] == "x":
            changes[key] = getattr(module.Config, key) * float(value[1:])
    return module, module.Config(**changes)


def settings(job):
    """All settings of a run, for its row: those of the script, or of the peer."""
    if job["who"] == "sb3":
        steps = {"total_timesteps": QUICK_STEPS} if job["quick"] else {}
        return {**PEERS[job["task"]], "seed": job["seed"], **steps}
    return dataclasses.asdict(load(job["task"], job["seed"], job["quick"])[1])


def cpu_seconds(function):
    """CPU seconds that a call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def quiet(row):
    """Report to nobody."""


@contextmanager
def watched(before_step):
    """Within, the first vector environment made calls before_step(steps so far, actions) before each step."""
    make_vec = gym.make_vec

    class Watched(gym.vector.VectorWrapper):
        steps = 0

        def step(self, actions):
            before_step(self.steps, actions)
            self.steps += self.num_envs
            return self.env.step(actions)

    def make_once(*args, **kwargs):
        gym.make_vec = make_vec  # evaluations are not watched
        return Watched(make_vec(*args, **kwargs))

    gym.make_vec = make_once
    try:
        yield
    finally:
        gym.make_vec = make_vec


class Grid:
    """Evaluates the greedy policy at POINTS moments of a run, while the clocks stand still."""

    def __init__(self, agent, module, config, total_timesteps, quick):
        self.agent, self.module, self.config, self.total_timesteps = agent, module, config, total_timesteps
        self.episodes = (2, 4) if quick else (GRID_EPISODES, FINAL_EPISODES)
        self.points, self.cpu_paused, self.wall_paused = [], 0.0, 0.0

    def clocks(self):
        """CPU and wall seconds since the process began, evaluations left out."""
        return time.process_time() - self.cpu_paused, time.perf_counter() - START - self.wall_paused

    def __call__(self, step, actions=None):
        if len(self.points) == POINTS or step * POINTS < len(self.points) * self.total_timesteps:
            return
        cpu, wall = self.clocks()
        returns = self.module.evaluate(
            self.agent, self.config.env_id, self.episodes[0], self.config.seed + 20_000
        )
        self.points.append([step, round(cpu, 3), float(returns.mean())])
        now = self.clocks()
        self.cpu_paused, self.wall_paused = self.cpu_paused + now[0] - cpu, self.wall_paused + now[1] - wall

    def row(self, steps):
        """The figures of a run finished after so many steps; its last evaluation is the one that the script
        itself prints."""
        cpu, wall = self.clocks()
        status = Path("/proc/self/status").read_text()  # ru_maxrss would start from the parent's
        memory = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
        returns = self.module.evaluate(
            self.agent, self.config.env_id, self.episodes[1], self.config.seed + 10_000
        )
        return dict(steps=steps, cpu=cpu, wall=wall, memory=memory, grid=self.points,
                    final=float(returns.mean()), worst=float(returns.min()))  # fmt: skip


def random_demonstrations(config, shipped, path):
    """As many transitions as in the shipped file, of uniformly random actions."""
    envs, wanted = gym.make_vec(config.env_id, num_envs=8), len(np.load(shipped)["actions"])
    rng, done, rows = np.random.default_rng(config.seed), np.zeros(8, bool), []
    obs, _ = envs.reset(seed=config.seed)
    while len(rows) < wanted:
        action = rng.uniform(envs.action_space.low, envs.action_space.high).astype(np.float32)
        next_obs, _, terminated, truncated, _ = envs.step(action)
        rows += [pair for pair, reset in zip(zip(obs, action), done) if not reset]
        obs, done = next_obs.copy(), terminated | truncated
    observations, actions = (np.array(column) for column in zip(*rows[:wanted]))
    np.savez(path, observations=observations, actions=actions)
    return str(path)


def measure_ours(job):
    """Train as a user would, evaluate along the way."""
    module, config = load(job["task"], job["seed"], job["quick"])
    with tempfile.TemporaryDirectory() as folder:
        if getattr(config, "demo", "") == "random":
            shipped = TOP / f"demos/{config.env_id}.npz"
            path = random_demonstrations(config, shipped, Path(folder) / "random.npz")
            config = dataclasses.replace(config, demo=path)
        agent = getattr(module, NETWORKS[module.__name__])(config)
        grid = Grid(agent, module, config, config.total_timesteps, job["quick"])
        with watched(grid):
            module.train(config, report=quiet, agent=agent)
    return grid.row(agent.steps)


def measure_peer(job):
    """The same for Stable-Baselines3, judged by the same evaluations."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    module, config = load(job["task"], job["seed"])  # for its task and its evaluate
    keys = copy.deepcopy(settings(job))  # the algorithm may add to them
    algorithm, n_envs, total, seed = (keys.pop(k) for k in ("algorithm", "n_envs", "total_timesteps", "seed"))
    for key, value in keys.items():
        if str(value).startswith("lin_"):  # falls to zero with the share of the run that is left
            keys[key] = lambda left, initial=float(value[4:]): left * initial
    env = make_vec_env(config.env_id, n_envs, seed=seed)
    model = getattr(sb3, algorithm)("MlpPolicy", env, seed=seed, device="cpu", **keys)
    agent = SimpleNamespace(act=lambda obs: model.predict(obs, deterministic=True)[0])
    grid = Grid(agent, module, config, total, job["quick"])

    class Evaluate(BaseCallback):
        def _on_step(self):
            grid(self.num_timesteps)
            return True

    grid(0)
    model.learn(total, callback=Evaluate())
    return grid.row(model.num_timesteps)


@contextmanager
def gradient_steps():
    """Within, note how often each optimizer steps, and the fewest calls of networks that led to a step."""
    found, calls, depth = {}, [], [0]

    def enter(module, inputs):
        depth[0] += 1

    def leave(module, inputs, output):
        depth[0] -= 1
        if depth[0] == 0 and not torch.is_inference_mode_enabled():  # acting is no part of it
            inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            trained = any(weight.requires_grad for weight in module.parameters())
            calls.append((module, inputs, trained, torch.is_grad_enabled()))

    def stepped(optimizer, *_):
        count, fewest = found.get(optimizer, (0, calls[:]))
        found[optimizer] = count + 1, min(fewest, calls[:], key=len)
        calls.clear()

    hooks = on_entering(enter), on_leaving(leave), on_step(stepped)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def repeat_gradient_steps(optimizer, count, calls):
    """So many steps on the mean squares of what the networks return, and nothing else."""
    for module, _, trained, _ in calls:
        module.requires_grad_(trained)
    for _ in range(count):
        loss = 0.0
        for module, inputs, _, grad in calls:
            with torch.set_grad_enabled(grad):
                outputs = module(*inputs)
            if grad:
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                loss = loss + sum(output.square().mean() for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measure_floor(job):
    """CPU seconds of training, and of its environment steps, gradient steps and actions, each alone."""
    module, config = load(job["task"], job["seed"], job["quick"])
    actions = []
    with watched(lambda _, action: actions.append(action.copy())), gradient_steps() as found:
        agent = module.train(config, report=quiet)
    ours = cpu_seconds(lambda: module.train(config, report=quiet))  # once more, with nobody watching
    envs = gym.make_vec(config.env_id, num_envs=config.num_envs)
    obs, _ = envs.reset(seed=config.seed)
    acting = cpu_seconds(lambda: [agent.act(obs) for _ in actions])
    env_steps = cpu_seconds(lambda: [envs.step(action) for action in actions])
    updates = [(optimizer, count, calls) for optimizer, (count, calls) in found.items()]
    gradient = cpu_seconds(lambda: [repeat_gradient_steps(*update) for update in updates])
    return dict(steps=len(actions) * config.num_envs, updates=sum(count for _, count, _ in updates), cpu=ours,
                env_cpu=env_steps, gradient_cpu=gradient, acting_cpu=acting,
                lines=shares_of_lines(module, config))  # fmt: skip


def shares_of_lines(module, config):
    """[line, its share of the time of training] for `train` and what it calls `update...`, in this order.
    A line that calls one of these is told by the lines of that one."""
    from line_profiler import LineProfiler

    names = [name for name in vars(module) if name == "train" or name.startswith("update")]
    profiler = LineProfiler(*(getattr(module, name) for name in names))
    profiler.runcall(module.train, config, quiet)
    timings, lines = profiler.get_stats().timings, Path(module.__file__).read_text().splitlines()
    spent = [(number, time) for function in timings.values() for number, _, time in function]
    called = re.compile(rf"\b({'|'.join(names)})\(")
    spent = {number: time for number, time in sorted(spent) if not called.search(lines[number - 1])}
    return [[lines[number - 1].strip(), time / sum(spent.values())] for number, time in spent.items()]


class Reached(Exception):
    """Training has made its replay buffer, args[0]; no need to go on."""


def measure_size(job):
    """Steps of training per CPU second, or bytes per transition of the replay buffer."""
    module, config = load(job["task"], job["seed"], job["quick"])
    if not job["task"].endswith("buffer"):
        module.train(dataclasses.replace(config, total_timesteps=1_024), report=quiet)  # warms up
        cpu = cpu_seconds(lambda: module.train(config, report=quiet))
        return dict(amount=config.total_timesteps / cpu, unit="steps a CPU second")

    def look(*_):
        raise Reached(next(x for x in gc.get_objects() if isinstance(x, module.ReplayBuffer)))

    try:
        with watched(look):
            module.train(config, report=quiet)
    except Reached as reached:
        values = [x if isinstance(x, (tuple, list)) else [x] for x in vars(reached.args[0]).values()]
    arrays = [x for group in values for x in group if hasattr(x, "nbytes") and x.ndim]
    return dict(amount=sum(x.nbytes for x in arrays) / max(map(len, arrays)), unit="bytes a transition")


def work(job):
    """What a process of its own does: one run on one core. Prints the row."""
    os.sched_setaffinity(0, {job["core"]})
    torch.set_num_threads(1)
    row = {key: job[key] for key in ("part", "task", "who", "seed")}
    measure = {"floor": measure_floor, "speed": measure_size}.get(job["part"], measure_ours)
    row |= measure_peer(job) if job["who"] == "sb3" else measure(job)
    packages = ["torch", "gymnasium", "numpy"] + ["pybullet"] * ("pybullet" in sys.modules)
    packages += ["stable_baselines3"] * (job["who"] == "sb3")
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    row |= {"config": settings(job), "versions": versions, "processor": model[1] if model else "unknown"}
    print("\n" + json.dumps({k: round(v, 3) if type(v) is float else v for k, v in row.items()}), flush=True)


def key(row):
    return row["part"], row["task"], row["who"], row["seed"]


def read_results(path):
    """The latest row of each run, {key: row}. ValueError naming the line that is none."""
    rows = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            rows[key(row)] = row
            missing = {"config", "versions", "processor", *FIELDS[row["part"]]} - row.keys()
            if missing:
                raise ValueError(missing)
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: expected a result, not {line[:40]!r}") from None
    return rows


def stale(rows):
    """Names of runs whose settings are no longer those of the scripts, or of this file."""
    names = []
    for (part, task, who, seed), row in rows.items():
        job = dict(task=task, who=who, seed=seed, quick=False)
        if task not in NAMES[part] or row["config"] != settings(job):
            names.append(f"{part} {task} {who} seed {seed}")
    return names


def planned(parts, names, seeds, quick, rows):
    """Jobs to do, seed after seed, in units that stay on one core: a run, or ours and the peer's in turn."""
    units = []
    for seed, part in ((seed, part) for seed in seeds for part in parts):
        whos = ["ours", "sb3"] if part == "peers" else ["ours"]
        few = part in ("floor", "speed") and seed not in seeds[:3]
        for task in [name for name in NAMES[part] if name in names and not few]:
            unit = [dict(part=part, task=task, who=who, seed=seed, quick=quick) for who in whos]
            if any(rows.get(key(job), {}).get("config") != settings(job) for job in unit):
                units.append(unit)
    return units


def spawn(job, running):
    """Run one job in a fresh process: its row. RuntimeError with its last words if it fails."""
    command = [sys.executable, __file__, "--work", json.dumps(job)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        running.append(process)
        out, err = process.communicate()
    running.remove(process)
    found = [line for line in out.splitlines() if line.startswith('{"part"')]
    if process.returncode or not found:
        last_words = (err.strip().splitlines() or ["no result"])[-1]
        raise RuntimeError(f"{job['part']} {job['task']} {job['who']} seed {job['seed']}: {last_words}")
    return json.loads(found[-1])


def run(units, path, processes):
    """Run all units, as many at a time as there are processes; append rows as they come. Returns failures."""
    cores, running, failures, start = queue.Queue(), [], [], time.perf_counter()
    for core in sorted(os.sched_getaffinity(0))[:processes]:
        cores.put(core)

    def on_one_core(unit):
        core = cores.get()
        try:
            return [spawn({**job, "core": core}, running) for job in unit]
        finally:
            cores.put(core)

    pool = ThreadPoolExecutor(cores.qsize())
    try:
        futures = {pool.submit(on_one_core, unit): unit[0] for unit in units}
        for number, future in enumerate(as_completed(futures), 1):
            try:
                with open(path, "a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in future.result())
            except RuntimeError as error:
                failures.append(str(error))
            left = (time.perf_counter() - start) / number * (len(units) - number) / 60
            bar, job = "#" * (24 * number // len(units)), futures[future]
            line = f"[{bar:24}] {number}/{len(units)} {left:5.1f} min left  {job['task']} seed {job['seed']}"
            end = "\r" if sys.stderr.isatty() and number < len(units) else "\n"
            print(f"{line:109.109}", end=end, file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):  # after Ctrl-C
            process.terminate()
    return failures


def curve(row):
    """All evaluations of a run, (step, CPU seconds, mean return), the final one included."""
    return [*row["grid"], [row["steps"], row["cpu"], row["final"]]]


def stays_solved(row, threshold):
    """Step and CPU seconds of the first evaluation after which all reach the threshold; or None."""
    first = None
    for step, cpu, mean in reversed(curve(row)):
        if mean < threshold:
            break
        first = step, cpu
    return first


def teacher(name):
    """Mean return of the demonstrations that POfD gets, or None."""
    script, changes = TASKS[name][:2]
    if script != "pofd":
        return None
    data = np.load(TOP / f"demos/{changes.get('env_id', PENDULUM + 'SparseEnv-v0')}.npz")
    return float(data["rewards"].sum() / (data["terminals"] | data["timeouts"]).sum())


def spread(values, digits=0):
    """The median and, in brackets, the least and the greatest; a dash for nothing."""
    if not len(values):
        return "-"
    middle, least, most = (f"{f(values):,.{digits}f}" for f in (np.median, np.min, np.max))
    return middle + (f" ({least} to {most})" if least != most else "")


def table(header, lines):
    """A Markdown table of the lines that are any, or nothing if there are none."""
    lines = [line for line in lines if line]
    rows = [header.split(" | "), ["---"] * len(header.split(" | ")), *lines] if lines else []
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows) + "\n" * bool(rows)


def runs_of(rows, part, task, who="ours"):
    """The runs of a task, by seed."""
    found = {row["seed"]: row for row in rows.values() if key(row)[:3] == (part, task, who)}
    return [found[seed] for seed in sorted(found)]


def outcome(runs, threshold):
    """Cells: seeds solved, final return, steps and CPU seconds until the policy stays solved."""
    solved = [first for first in (stays_solved(row, threshold) for row in runs) if first]
    steps, cpu = spread([first[0] for first in solved]), spread([first[1] for first in solved], 1)
    return f"{len(solved)} of {len(runs)}", spread([row["final"] for row in runs], 1), steps, cpu


def run_line(rows, part, name):
    """What a task costs and gives."""
    script, changes, threshold, _ = TASKS[name]
    runs = runs_of(rows, part, name)
    if not runs:
        return None
    flags = "".join(f" --{field.replace('_', '-')} {value}" for field, value in changes.items())
    goal = f"{threshold:,}" + (f" ({teacher(name):.0f})" if teacher(name) else "")
    cost = spread([row["cpu"] for row in runs], 1), f"{max(row['memory'] for row in runs):.0f}"
    worst = f"{min(row['worst'] for row in runs):,.1f}"
    command = [f"`python {script}.py{flags}`"] if part == "main" else []
    return [name, *command, goal, *outcome(runs, threshold), worst, *cost]


def peer_line(rows, name):
    """Ours and the peer by the same criterion. Where the peer fails, its whole run is a lower bound."""
    ours, theirs = (runs_of(rows, "peers", name, who) for who in ("ours", "sb3"))
    if not ours or not theirs:
        return None
    pairs = [[stays_solved(row, TASKS[name][2]) for row in pair] for pair in zip(ours, theirs)]
    ratios = [(b[1] if b else row["cpu"]) / a[1] for (a, b), row in zip(pairs, theirs) if a]
    cells = zip(outcome(ours, TASKS[name][2]), outcome(theirs, TASKS[name][2]))
    bound = ">= " if any(a and not b for a, b in pairs) else ""
    return [name, *(f"{a} / {b}" for a, b in cells), bound + spread(ratios, 1)]


def floor_line(rows, name):
    """Training as a multiple of its parts alone."""
    runs = runs_of(rows, "floor", name)
    if not runs:
        return None
    cpu, envs, gradient, acting = np.array([[row[field] for field in FIELDS["floor"][:4]] for row in runs]).T
    multiples = cpu / (envs + gradient), cpu / (envs + gradient + acting)
    figures = [spread(figure, 2) for figure in (cpu, envs, gradient, acting)]
    counts = [f"{runs[0][field]:,}" for field in FIELDS["floor"][4:6]]
    return [name, *counts, *figures, *(spread(multiple, 2) for multiple in multiples)]


def shares_line(rows, name):
    """The lines of a script that take longest, those of the floor and those beyond."""
    runs = runs_of(rows, "floor", name)
    if not runs:
        return None
    largest = sorted(runs[0]["lines"], key=lambda line: -line[1])
    told = [(text, share) for text, share in largest if share >= LEAST_SHARE]
    cells = [f"`{text.split('  # ')[0]}` {share:.0%}".replace("|", "\\|") for text, share in told]
    return [name, "<br>".join([*cells, f"all others {1 - sum(share for _, share in told):.0%}"])]


def size_line(rows, name):
    """Cost against size."""
    runs = runs_of(rows, "speed", name)
    return [name, spread([row["amount"] for row in runs]) + f" {runs[0]['unit']}"] if runs else None


RUNS = "goal (teacher) | solved | return | steps | CPU s | worst | CPU s, all | MiB"
HEADERS = {
    "main": f"task | command | {RUNS}",
    "controls": f"task | {RUNS}",
    "peers": "ours / Stable-Baselines3 | solved | return | steps | CPU s | their CPU s over ours",
    "floor": "CPU s | env steps | gradient steps | training | env alone | gradient alone | acting alone"
    " | training / (env + gradient) | / (env + gradient + acting)",
    "lines": "training | share of its time, line by line",
    "speed": "size | cost",
}
FOOTER = """Seeds {} to {}: the median (the least to the greatest). Return: the mean of {} greedy episodes at
the end; worst: the worst of them all. Solved: there, and in every evaluation since the given step and CPU
second (imports included), of {} on the way at most, of {} episodes each, off the clock.
Made by `python tests/benchmark.py`; one core of {}; {}.
"""


def tables(rows):
    """All that stands between the README's markers."""
    lines = {"peers": peer_line, "floor": floor_line, "speed": size_line}
    text = ""
    for part in NAMES:
        line = lines.get(part, partial(run_line, part=part))
        text += table(HEADERS[part], [line(rows, name=name) for name in NAMES[part]])
        if part == "floor":
            text += table(HEADERS["lines"], [shares_line(rows, name) for name in NAMES[part]])
    seeds, processors = (sorted({row[field] for row in rows.values()}) for field in ("seed", "processor"))
    versions = {name: number for row in rows.values() for name, number in row["versions"].items()}
    packages = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    end = FINAL_EPISODES, POINTS, GRID_EPISODES, ", ".join(processors), packages
    return text + FOOTER.format(seeds[0], seeds[-1], *end)


def with_tables(text, rows):
    """The README's text with the tables between the markers brought up to date."""
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not start or not end:
        raise ValueError(f"README.md: expected the lines {MARKERS[0].strip()} and {MARKERS[1].strip()}")
    return f"{before}{start}\n{tables(rows)}\n{end}{after}"


def plot(rows, path):
    """Greedy return against steps: thin lines are seeds, the thick one their median."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot as plt

    names = [(TASKS[name][3], name) for name in TASKS if ", " not in name]  # no controls
    runs = {name: [curve(row) for row in runs_of(rows, part, name)] for part, name in names}
    runs = {name: [np.array(curve) for curve in curves] for name, curves in runs.items() if curves}
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    height, paper = -(-len(runs) // 3), "#f4f4f2"
    figure, axes = plt.subplots(height, 3, figsize=(9, 2 * height + 0.5), squeeze=False, facecolor=paper)
    for axis in axes.flat:
        axis.set(facecolor=paper, visible=False)
    for axis, (name, curves) in zip(axes.flat, runs.items()):  # each (points, 3)
        axis.set(visible=True)
        axis.set_title(name, fontsize=9)
        for points in curves:
            axis.plot(points[:, 0] / 1000, points[:, 2], color="#5588bb", linewidth=0.6, label="one seed")
            axis.plot(points[-1:, 0] / 1000, points[-1:, 2], ".", color="#5588bb", markersize=4)
        grid = max(curves, key=len)[:, 0]  # a run that was solved, and ended, stays what it is
        median = np.median([np.interp(grid, points[:, 0], points[:, 2]) for points in curves], 0)
        axis.plot(grid / 1000, median, color="#113355", linewidth=2, label="median")
        axis.axhline(TASKS[name][2], color="#777777", linewidth=1, linestyle="--", label="solved")
        if teacher(name):
            axis.axhline(teacher(name), color="#cc6633", linewidth=1.5, linestyle=":", label="teacher")
    lines = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=4, frameon=False)
    figure.supxlabel("thousand environment steps", fontsize=9, y=0.28 / figure.get_figheight())
    figure.supylabel("greedy return", fontsize=9)
    figure.tight_layout(rect=(0, 0.22 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=150)


def selected(patterns, parts):
    """Names of the tasks that contain one of the patterns. ValueError if a pattern is in none."""
    names = {name for part in parts for name in NAMES[part]}
    for pattern in patterns:
        if not any(pattern in name for name in names):
            raise ValueError(f"no task contains {pattern!r}; there are: {'; '.join(sorted(names))}")
    return {name for name in names if not patterns or any(pattern in name for pattern in patterns)}


def carry_out(flags, folder=None):
    """Run and publish what the flags say; or all in small, into a folder. Returns failures."""
    results, picture, readme = (folder / x.name if folder else x for x in (RESULTS, PICTURE, README))
    publish = flags.plot or flags.readme
    parts = [part for part in NAMES if getattr(flags, part)] or ["main"] * (not publish)
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    names = selected(flags.only, parts or NAMES)
    if folder:
        parts, seeds, names = NAMES, seeds[:1], QUICK
        readme.write_text("".join(MARKERS))
    units = planned(parts, names, seeds, bool(folder), read_results(results))
    failures = run(units, results, flags.processes)
    rows = read_results(results)
    if publish and not folder and (not rows or stale(rows)):
        missing = "; ".join(stale(rows)[:3]) or "all"
        raise ValueError(f"{results}: out of date, run the benchmark again: {missing}")
    if flags.plot or folder:
        plot(rows, picture)
    if flags.readme or folder:
        readme.write_text(with_tables(readme.read_text(), rows))
    return failures


def main(argv=None):
    parser = argparse.ArgumentParser("benchmark.py", argparse.SUPPRESS, description=__doc__)
    for part in NAMES:
        parser.add_argument(f"--{part}", action="store_true", help=f"run: {'; '.join(NAMES[part])}")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="tasks whose name contains it")
    parser.add_argument("--seeds", type=int, default=10, help="how many; of --floor and --speed 3 at most")
    parser.add_argument("--first-seed", type=int, default=1_101)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--plot", action="store_true", help="draw demos/learning_curves.png")
    parser.add_argument("--readme", action="store_true", help="write the README's tables")
    parser.add_argument(
        "--quick", nargs="?", const="", metavar="FOLDER", help="all of it in small, elsewhere"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.work:
        return work(flags.work)
    try:
        if min(flags.seeds, flags.processes) < 1 or flags.first_seed < 0:
            raise ValueError("expected --seeds and --processes of at least 1, --first-seed of at least 0")
        with tempfile.TemporaryDirectory() as temporary:
            failures = carry_out(flags, None if flags.quick is None else Path(flags.quick or temporary))
    except KeyboardInterrupt:
        parser.exit(130, "\nbenchmark.py: stopped; the same command goes on from here\n")
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    for failure in failures:
        print(f"benchmark.py: error: {failure}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
