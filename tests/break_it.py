"""Break a script on purpose, train what is left, and see what the broken part was good for.

`python tests/break_it.py --readme` trains every experiment below, each with several seeds, and writes the
README's table "Break it", on two cores in less than 20 minutes. Results go to break_it.jsonl as they come:
what is there is not trained again, unless the script has changed (comments, docstrings and `main` aside).
`--only "ppo.py: no clipping"` takes the experiments with that text in their names.
"""

import argparse
import ast
import functools
import hashlib
import json
import multiprocessing
import os
import time
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

TOP = Path(__file__).resolve().parent.parent
RESULTS, README = TOP / "tests" / "break_it.jsonl", TOP / "README.md"
START, END = "<!-- break it: start -->", "<!-- break it: end -->"
SEEDS = {"dqn": range(401, 406), "ppo": range(401, 406), "pofd": range(401, 404), "sac": range(401, 403)}
SETTINGS = {  # not ended when solved: what comes after shows what is broken. SAC's own task takes too long
    "dqn": dict(eval_frequency=0, total_timesteps=112_000),
    "ppo": dict(eval_frequency=0, total_timesteps=40_960),
    "pofd": dict(eval_frequency=0, total_timesteps=39_936),
    "sac": dict(eval_frequency=0, env_id="InvertedPendulumPyBulletEnv-v0", total_timesteps=20_000),
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """One way to break a script: edits of its text, settings, or both. Without either it is unbroken."""

    script: str
    name: str
    question: str = ""
    why: str = ""  # what happened and why, in one sentence: check it when the figures change
    edits: tuple = ()  # (text, replacement); the text stands in the script exactly once
    settings: dict = field(default_factory=dict)  # of Config

    @property
    def title(self):
        return f"{self.script}.py: {self.name}"


UPDATE_D = "d_loss = update_discriminator(discriminator, d_optimizer, *pairs, rng, config)"
UPDATE_D_FIRST = f"""pairs = [s[:-1][stored], e[stored], *demo]
            with torch.enable_grad():
                {UPDATE_D}
            imitation = imitation_reward(discriminator(s[:-1], e))"""
NUMBER_PAIRS = (  # instead of targets, and hand on what they are made of
    ("advantage + value[:-1])]", "torch.arange(r.numel()).view_as(r))]"),
    (
        "def update(agent, optimizer, batch, config",
        "def update(agent, optimizer, batch, config, s, r, end, last",
    ),
    (
        "= update(agent, optimizer, batch, config",
        "= update(agent, optimizer, batch, config, s, r, end, last",
    ),
)
LIVE_TARGETS = """values = agent.critic(s).squeeze(-1)
            live = gae(r, values[:-1], values[1:], end, last, config.gamma, config.gae_lambda)
            target = (live + values[:-1]).flatten()[target]
            value_loss ="""
ONE_STEP_TARGETS = LIVE_TARGETS.replace("config.gae_lambda", "0")

EXPERIMENTS = [
    Experiment(
        "dqn",
        "no target network",
        "Must Q chase a target that stands still?",
        (
            "All seeds are lost: Q at the start ends above two million, where 10 is the bound. "
            "Bootstrapping, function approximation and data of other policies diverge together (the "
            "deadly triad) where the target does not stand still."
        ),
        settings=dict(tau=1.0, target_network_frequency=1),
    ),
    Experiment(
        "dqn",
        "no replay",
        "What if only the newest step of the 32 environments is learned from?",
        (
            "Two seeds of five are lost: 32 environments side by side are some variety, but what none of "
            "them is doing at the moment is forgotten."
        ),
        settings=dict(buffer_size=32),
    ),
    Experiment(
        "dqn",
        "Adam's usual epsilon",
        "What if steps keep their size while errors become small?",
        (
            "The greedy policies of these five seeds hold, but a training return ends at 224 (unbroken: "
            "464 at least): Adam divides small gradients by their own size, and steps of full size on "
            "noise undo what was learned."
        ),
        edits=(("eps=1e-3", "eps=1e-8"),),
    ),
    Experiment(
        "dqn",
        "rewards not scaled",
        "Does the Huber loss care about the unit of reward?",
        (
            "Three seeds of five are lost: the TD error of a failure, near 100, lies where the Huber "
            "loss is linear, and Adam's epsilon is small beside gradients ten times as large."
        ),
        settings=dict(reward_scale=1.0),
    ),
    Experiment(
        "dqn",
        "bounds not weighed",
        "Can angles and metres go in as they are?",
        (
            "All seeds are lost, at 237 to 333: the input is badly conditioned, 0.2 rad is failure for "
            "the pole and next to nothing beside the cart's 2.4 m."
        ),
        edits=(("np.where(bound < 1e6, 4.8 / bound, 1)", "np.ones_like(bound)"),),
    ),
    Experiment(
        "dqn",
        "half the horizon",
        "Is a horizon of 50 steps, one second, enough?",
        (
            "One seed of five is damaged: with Q at its bound of 5 everywhere, a cart that drifts slowly "
            "looks as good as one that stands."
        ),
        settings=dict(gamma=0.98),
    ),
    Experiment(
        "dqn",
        "time limit taken for failure",
        "What if truncation cuts the bootstrap as well?",
        (
            "The greedy policies hold, but a last TD loss is 0.04 (unbroken: 0.0005 at most): states "
            "alike are worth 10 or nothing depending on an unseen clock (time-limit aliasing)."
        ),
        edits=(("* reward, next_obs, terminated", "* reward, next_obs, terminated | truncated"),),
    ),
    Experiment(
        "dqn",
        "terminated and truncated swapped",
        "What if failure bootstraps, and the time limit does not?",
        (
            "All seeds are lost: a fall bootstraps from a state that no update ever reaches, so that its "
            "value rises with all others and lifts them in turn, without a bound: Q at the start ends at "
            "0.6 to 1.5 million."
        ),
        edits=(("next_obs, reward, terminated, truncated,", "next_obs, reward, truncated, terminated,"),),
    ),
    Experiment(
        "ppo",
        "value target recomputed",
        "Must the target be fixed for the rollout?",
        (
            "It does not matter: V chases its newest self, which lifts it slightly (at the start to 9.9 to "
            "10.0, unbroken 9.8 to 9.9; 10 is the bound), but lambda-returns rest on rewards enough for that."
        ),
        edits=(*NUMBER_PAIRS, ("value_loss =", LIVE_TARGETS.replace("[target]", "[target].detach()"))),
    ),
    Experiment(
        "ppo",
        "value target not detached",
        "And if the gradient flows into it too?",
        (
            "It does not matter here (but one V at the start ends at 8.6): this is the residual gradient "
            "(Baird 1995), which double sampling biases where what comes next is random, and CartPole is "
            "deterministic."
        ),
        edits=(*NUMBER_PAIRS, ("value_loss =", LIVE_TARGETS)),
    ),
    Experiment(
        "ppo",
        "one-step value target recomputed",
        "And with r + gamma V(s') alone as the target, detached?",
        (
            "One seed of five is damaged: bootstrapping on V alone, the reward travels one step a sweep "
            "(bias in place of variance)."
        ),
        edits=(*NUMBER_PAIRS, ("value_loss =", ONE_STEP_TARGETS.replace("[target]", "[target].detach()"))),
    ),
    Experiment(
        "ppo",
        "one-step value target not detached",
        "And if the gradient flows into that?",
        (
            "No seed reaches 500, they end at 331 to 499: the residual gradient (Baird 1995) pulls V(s') "
            "down to V(s) as much as V(s) up, so value travels slowly: V at the start is 7.3 to 8.2 at the "
            "end, where the semi-gradient has 8.9 to 10.4."
        ),
        edits=(*NUMBER_PAIRS, ("value_loss =", ONE_STEP_TARGETS)),
    ),
    Experiment(
        "ppo",
        "no clipping",
        "Does the importance ratio need a bound?",
        (
            "Four seeds of five are lost: nothing keeps the importance ratio near 1 for ten epochs on one "
            "rollout, steps overshoot, and entropy collapses (to between 0.06 and 0.20 nats, unbroken "
            "0.28 to 0.39)."
        ),
        settings=dict(clip_coef=1e6),
    ),
    Experiment(
        "ppo",
        "advantages not normalised",
        "Does the scale of the advantages matter?",
        (
            "Two seeds of five are damaged, at 451 and 463: without subtracting the mean, a V that lags "
            "behind is a poor baseline, and what was done is reinforced for having been done."
        ),
        edits=(("(advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)", "advantage"),),
    ),
    Experiment(
        "ppo",
        "time limit taken for failure",
        "What if truncation cuts the bootstrap as well?",
        (
            "Returns hardly suffer (one seed of five ends at 412), values do: states alike are worth 10 or "
            "nothing depending on an unseen clock (time-limit aliasing), and the last value loss is 0.004 to "
            "4 in place of 0.0002 to 0.0004."
        ),
        edits=(("reward * config.reward_scale, terminated,", "reward * config.reward_scale, done[1:],"),),
    ),
    Experiment(
        "ppo",
        "terminated and truncated swapped",
        "What if failure bootstraps, and the time limit does not?",
        (
            "Four seeds of five are lost, at 33 to 197: failure bootstraps, so that falling costs nothing, "
            "and V at the start is 7.5 to 9.8 all the same."
        ),
        edits=(("reward[t], terminated[t], truncated,", "reward[t], truncated, terminated[t],"),),
    ),
    Experiment(
        "pofd",
        "lambda 0",
        "Is it solved without the demonstrations?",
        (
            "All seeds are lost: PPO alone hardly ever meets the sparse reward, and without one all "
            "advantages are noise (exploration)."
        ),
        settings=dict(reward_lambda=0.0),
    ),
    Experiment(
        "pofd",
        "D learns before its reward is read",
        "Does the order matter?",
        (
            "One seed of three is not done in time (GAIL has this order): D judges a rollout that it has "
            "just been trained on and pays less for it; V at the start ends at 19.4 to 23.4 in place of "
            "23.8 to 34.0."
        ),
        edits=(
            (UPDATE_D, ""),
            ("imitation = imitation_reward(discriminator(s[:-1], e))", UPDATE_D_FIRST),
        ),
    ),
    Experiment(
        "pofd",
        "opposite sign",
        "What if the agent is paid for looking unlike the demonstrations?",
        (
            "All seeds are lost, without one payment in twenty episodes: log D is never positive, a price "
            "for every step, so to fall at once costs least."
        ),
        edits=(("r + config.reward_lambda * imitation", "r - config.reward_lambda * imitation"),),
    ),
    Experiment(
        "sac",
        "one Q",
        "What is the minimum of two for?",
        (
            "Both seeds hold, but the actor's loss, which is about -Q, ends at -3.9 and -4.5, where 3 is "
            "the most that Q can be (unbroken: -2.8 and -2.9): overestimation, which the minimum of two "
            "prevents."
        ),
        edits=(("next_action).amin(0)", "next_action)[0]"), ("(obs, action).amin(0)", "(obs, action)[0]")),
    ),
    Experiment(
        "sac",
        "temperature fixed at 1",
        "Why learn alpha?",
        (
            "The greedy policies hold, the sampled ones less: training episodes, 200 steps at most, last "
            "149 on average in place of 173, as entropy outweighs the scaled reward."
        ),
        edits=(("Adam([*actor.parameters(), log_alpha]", "Adam([*actor.parameters()]"),),
        settings=dict(alpha=1.0),
    ),
    Experiment(
        "sac",
        "no tanh correction",
        "What if log pi is that of the Gaussian before the tanh?",
        (
            "Both seeds hold. But log pi is not that of the action any more: u spreads to where tanh is "
            "flat, entropy seems far above its target, and alpha falls below 1e-8 (unbroken: 2e-4)."
        ),
        edits=(("2 * (math.log(2) - u - softplus(-2 * u))", "0 * u"),),
    ),
    Experiment(
        "sac",
        "white noise",
        "What if the noise in actions is drawn anew at every step, as in the paper?",
        (
            "One seed of two is lost: white noise averages out before the cart has moved, and what comes "
            "of its drift into the rail is hardly ever learned."
        ),
        settings=dict(noise_correlation=0.0),
    ),
    Experiment(
        "sac",
        "the last actor",
        "What if the actor of the last step is returned, not the average of the last tenth?",
        (
            "One seed of two is lost: the actor follows the error of the critic of the moment, one moment "
            "it holds and the next it drifts."
        ),
        settings=dict(averaging=0.0),
    ),
]  # fmt: skip
UNBROKEN = {script: Experiment(script, "unbroken") for script in SEEDS}


def broken_source(experiment):
    """The script's text with the edits made. ValueError unless each text is there exactly once."""
    source = (TOP / f"{experiment.script}.py").read_text()
    for text, _ in experiment.edits:
        if source.count(text) != 1:
            raise ValueError(f"{experiment.title}: expected once, found {source.count(text)} times: {text}")
    for text, replacement in experiment.edits:
        head, tail = source.split(text)  # ValueError if another edit brought the text in again
        source = head + replacement + tail
    return source


def broken_module(experiment):
    """The broken script as a module, with the script's `__file__`, so that it finds its demonstrations."""
    module = types.ModuleType(experiment.script)
    module.__file__ = str(TOP / f"{experiment.script}.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, of an environment registered once more
        exec(compile(broken_source(experiment), experiment.title, "exec"), module.__dict__)
    return module


@functools.cache
def what_runs(source):
    """The source's syntax tree as text, without docstrings and `main`."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "main"]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def fingerprint(experiment):
    """A hash of all that a result depends on: script, settings, demonstrations."""
    settings = {**SETTINGS.get(experiment.script, {}), **experiment.settings}
    content = what_runs(broken_source(experiment)) + repr(settings)
    demos = sorted((TOP / "demos").glob("*.npz")) if experiment.script == "pofd" else []
    return hashlib.sha256(content.encode() + b"".join(d.read_bytes() for d in demos)).hexdigest()[:12]


def start_value(module, agent, env_id):
    """What the agent thinks its start states are worth, in scaled reward; None if only its critic knew."""
    obs, _ = module.gym.make_vec(env_id, num_envs=100).reset(seed=0)
    obs = module.torch.as_tensor(obs, dtype=module.torch.float32)
    with module.torch.no_grad():
        if hasattr(agent, "critic"):
            return float((agent.value(obs) if hasattr(agent, "value") else agent.critic(obs)).mean())
        return float(agent(obs).amax(1).mean()) if hasattr(module, "QNetwork") else None


def run(experiment, seed, **settings):
    """Train and judge one experiment with one seed: a dict for the file. `settings` go before all others."""
    start, rows, module = time.process_time(), [], broken_module(experiment)
    settings = {**SETTINGS.get(experiment.script, {}), **experiment.settings, "seed": seed, **settings}
    config = module.Config(**settings)
    result = {"experiment": experiment.title, "seed": seed, "fingerprint": fingerprint(experiment)}
    try:
        agent = module.train(config, report=rows.append)
        episodes = 20 if "PyBullet" in config.env_id else 100
        result["return"] = float(module.evaluate(agent, config.env_id, episodes, seed + 10_000).mean())
        result["start_value"] = start_value(module, agent, config.env_id)
    except FloatingPointError as error:
        result.update({"return": None, "error": str(error)})
    result["cpu_seconds"] = round(time.process_time() - start, 1)
    for key in rows[-1] if rows else ():
        values = [float(f"{row[key]:.4g}") for row in rows if np.isfinite(row[key])]
        result.setdefault("last", {})[key] = values[-1] if values else None
        result.setdefault("peak", {})[key] = max(values, key=abs, default=None)
    return result


def run_job(job):
    """For a pool of processes."""
    return run(*job)


def load_results():
    """The results that are still valid: {(title, seed): result}."""
    current = {e.title: fingerprint(e) for e in [*UNBROKEN.values(), *EXPERIMENTS]}
    results = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
        try:
            result = json.loads(line)
        except ValueError:  # the half of a line that an interruption left
            continue
        if current.get(result["experiment"]) == result["fingerprint"]:
            results[result["experiment"], result["seed"]] = result
    return results


def run_missing(experiments, processes):
    """Train what has no result yet, one core a process; append each result to the file as it comes."""
    results = load_results()
    jobs = [(e, s) for e in experiments for s in SEEDS[e.script] if (e.title, s) not in results]
    if not jobs:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes
    torn = RESULTS.exists() and not RESULTS.read_bytes().endswith(b"\n")
    with RESULTS.open("a") as file, multiprocessing.get_context("spawn").Pool(processes) as pool:
        file.write("\n" * torn)
        for number, result in enumerate(pool.imap_unordered(run_job, jobs), 1):
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{number}/{len(jobs)}  {result['experiment']}  seed {result['seed']}  return "
                  f"{shown(result)}  {result['cpu_seconds']} s", flush=True)  # fmt: skip


def shown(result):
    """A return as the table shows it."""
    return "not finite" if result["return"] is None else f"{result['return']:.1f}"


def median_and_min(experiment, results):
    """'median (min)' of the returns over seeds, None while some are missing; 'not finite' is the least."""
    runs = [results.get((experiment.title, seed)) for seed in SEEDS[experiment.script]]
    if None in runs:
        return None
    runs.sort(key=lambda result: -np.inf if result["return"] is None else result["return"])
    return f"{shown(runs[len(runs) // 2])} ({shown(runs[0])})"


def table(results):
    """The README's table of all experiments whose runs are complete."""
    lines = [
        "| broken | unbroken: median (min) | broken: median (min) | what happens, and why |",
        "|---|---|---|---|",
    ]
    for experiment in EXPERIMENTS:
        unbroken = median_and_min(UNBROKEN[experiment.script], results)
        broken = median_and_min(experiment, results)
        if unbroken and broken:
            what = f"`{experiment.script}.py`, {experiment.name}. {experiment.question}"
            lines.append(f"| {what} | {unbroken} | {broken} | {experiment.why} |")
    return "\n".join(lines)


def write_readme(text):
    """Put the text between the README's markers."""
    readme = README.read_text()
    head, rest = readme.split(START)
    new = f"{head}{START}\n{text}\n{END}{rest.split(END)[1]}"
    temporary = README.with_suffix(".tmp")
    temporary.write_text(new)
    os.replace(temporary, README)


def main(argv=None):
    parser = argparse.ArgumentParser("break_it.py", argparse.SUPPRESS)
    parser.add_argument(
        "--only", default="", help="text that the experiment's name contains, as in 'ppo.py: no'"
    )
    parser.add_argument("--processes", type=int, default=2, help="how many train at a time, one core each")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    args = parser.parse_args(argv)
    chosen = [e for e in EXPERIMENTS if args.only in e.title]
    try:
        for experiment in [*UNBROKEN.values(), *EXPERIMENTS]:
            broken_source(experiment)
        if not chosen or args.processes < 1:
            raise ValueError(f"nothing to do with --only {args.only!r} --processes {args.processes}")
        if args.readme and (README.read_text().count(START), README.read_text().count(END)) != (1, 1):
            raise ValueError(f"README.md: expected {START} and {END} once each")
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])
    scripts = {e.script: None for e in chosen}  # in their order
    run_missing([*(UNBROKEN[script] for script in scripts), *chosen], args.processes)
    text = table(load_results())
    print(text)
    if args.readme:
        write_readme(text)


if __name__ == "__main__":
    main()
