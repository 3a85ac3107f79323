"""Learn by doing: a script with its key parts left out, and a check of what you write instead.

`python demos/exercise.py ppo.py` writes exercise_ppo.py into the current folder. Fill in
its parts, in any order. `python demos/exercise.py --check exercise_ppo.py` judges each: right, not
yet, or wrong, with the smallest case that shows it. The other parts are ours meanwhile."""
import _thread
import argparse
import ast
import dataclasses
import json
import operator
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import ROOT, load_script, script_path
from demos.trace import WHOLE, describe

EXERCISES = json.loads(Path(__file__).with_name("exercises.json").read_text(encoding="utf-8"))
SECONDS = 10  # that a part may take for a case


class Times(nn.Module):
    """Replaces all networks, so that a case can be computed by hand: obs times a factor."""
    def __init__(self, *factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, obs, action=None):
        """(B, outputs), or for two critics (2, B), which add 1 and -0.5 times the action."""
        value = self.factor * obs
        return value if action is None else (value + torch.tensor([1.0, -0.5]) * action).T

    def sample(self, obs):
        return self(obs), self(obs)[:, 0] - 1

    def act(self, obs):
        return np.where(obs[:, 0] > 0, 2, 0)


def make_inputs(original, exercise, case):
    """The arguments of a part by name. In exercises.json, a text such as "T N 1" is the shape of
    numbers that are drawn at random, and {"times": [2.0]} is a network."""
    x = {"B": 1, "T": 1, "N": 1, "A": 1, "log_std": 0, **exercise["inputs"], **case}
    torch.manual_seed(7)
    for name, value in x.items():
        if isinstance(value, str):
            shape = [x.get(size) or int(size) for size in value.split()]
            x[name] = (2 * torch.randn(shape)).round(decimals=1)  # easy to read
        elif isinstance(value, dict) and "times" in value:
            x[name] = Times(*value["times"])
        elif isinstance(value, list):
            x[name] = torch.tensor(value, dtype=torch.float32)
        if name in exercise.get("learned", ()):
            x[name].requires_grad_()
    x["config"] = dataclasses.replace(original.Config(), **case.get("config", {}))
    x["discriminator"] = lambda pair: pair[..., 0] - pair[..., 1]
    x["self"] = nn.Identity()
    if hasattr(original, "ActorCritic"):
        x["agent"] = x["self"] = original.ActorCritic(*[Box(-1, 1, (x["A"],))] * 2, hidden_size=1)
        x["self"].actor = x["self"].critic = nn.Identity()
        x["self"].log_std.data += x["log_std"]
    if "rollout" in exercise:
        x["rollout"] = list(zip(*(x[name] for name in exercise["rollout"])))
    elif "batch" in exercise["arguments"]:
        x["batch"] = original.Batch(*(x[name] for name in original.Batch._fields))
    elif "envs" in exercise["arguments"]:
        x["envs"] = SimpleNamespace(num_envs=x["N"], single_action_space=Discrete(3),
                                    action_space=MultiDiscrete([3] * x["N"]))
        x["obs"] = x["obs"].numpy()
    return {name: x[name] for name in exercise["arguments"]}


def outcome(part, exercise, inputs):
    """What a part returns, and what it does to its inputs: {name: value}."""
    def run(numpy_seed, torch_seed):
        np.random.seed(numpy_seed)
        torch.manual_seed(torch_seed)
        return part(**inputs)

    result, names = run(0, 0), exercise["results"]
    results = result if isinstance(result, (tuple, list)) else [result]
    found = {f"number of results ({', '.join(names)})": len(results), **dict(zip(names, results))}
    if isinstance(result, torch.distributions.Distribution):
        log_prob = result.log_prob(result.mean.detach() + 0.5)
        found = {"mean": result.mean, "standard deviation": result.stddev,
                 "entropy": result.entropy(), "log_prob(mean + 0.5)": log_prob}
    elif isinstance(result, nn.Module):
        found = dict(result.named_parameters(names[0]))
    elif names == ["action"] and np.size(result) > WHOLE:
        fractions = np.array([np.mean(result == action) for action in range(3)])
        found = {"fraction of each action": fractions.round(1),  # to a digit, as it is random
                 "same actions with the same np.random.seed": np.array_equal(result, run(0, 1)),
                 "same actions with another np.random.seed": np.array_equal(result, run(1, 0))}
    learned = [x.sum() for x in found.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    if learned:
        sum(learned).backward()
    for name, value in inputs.items():
        module = isinstance(value, nn.Module)
        for key, x in value.named_parameters(name) if module else [(name, value)]:
            if isinstance(x, torch.Tensor) and name not in names:
                gradient = x.grad if x.grad is not None and x.grad.any() else None
                found |= {f"gradient of {key}": gradient, f"{key} afterwards": x}
    return found


def compare(want, have):
    """The first difference between two outcomes, as a sentence."""
    def numbers(value):
        return " ".join(f"{x.shape} {x.text}".strip() for x in describe("", value)) or "nothing"

    def kind(value):
        return f"a {type(value).__name__} {getattr(value, 'dtype', '')}".strip()

    for name, x in want.items():
        y = have.get(name)
        try:
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)
        except (AssertionError, TypeError):  # it raises TypeError where one is a NumPy array
            tell = kind if numbers(x) == numbers(y) else numbers
            return f"{name}: expected {tell(x)}, got {tell(y)}"
    return ""


def find_lines(lines, exercise):
    """The first and the last line of a part of a script, found by name and by how they begin."""
    node = ast.parse("\n".join(lines))
    for name in exercise["part"].split("."):
        node = next(x for x in node.body if getattr(x, "name", "") == name)
    if "first" not in exercise:
        return node.body[1].lineno, node.end_lineno  # all but the docstring
    statements = [x for x in ast.walk(node) if isinstance(x, ast.stmt)]
    first, last = (next(x for x in statements if lines[x.lineno - 1].strip().startswith(start))
                   for start in (exercise["first"], exercise["last"]))
    return first.lineno, last.end_lineno


def make_file(name):
    """The text of a script with a hint in place of each part."""
    lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
    blanks = [(*find_lines(lines, x), i, x) for i, x in enumerate(EXERCISES[name], 1)]
    for first, last, i, exercise in sorted(blanks, key=lambda blank: -blank[0]):  # from the end on
        margin = " " * (len(lines[first - 1]) - len(lines[first - 1].lstrip()))
        hint = textwrap.wrap(f"EXERCISE {i}: {exercise['hint']} Read {exercise['paper']}.",
                             95 - len(margin), break_on_hyphens=False)
        lines[first - 1:last] = [*(f"{margin}# {line}" for line in hint),
                                 f'{margin}raise NotImplementedError("exercise {i}")',
                                 f"{margin}# END OF EXERCISE {i}"]
    head = ["# Replace each NotImplementedError, between EXERCISE and END OF EXERCISE. Then run",
            f"# python demos/exercise.py --check exercise_{name}.py"]
    return "\n".join([*head, *lines, ""])


def get_part(module, exercise, lines, first, last):
    """A part of a script as a function of its inputs."""
    if exercise["part"] != "main":
        return operator.attrgetter(exercise["part"])(module)

    # Lines inside main cannot be called. Here the text itself is the subject: these lines are
    # compiled alone, and run with the inputs as variables.
    main = next(x for x in ast.parse("\n".join(lines)).body if getattr(x, "name", "") == "main")
    loop = next(x for x in main.body if isinstance(x, ast.For))
    statements = [x for x in loop.body if first <= x.lineno <= last]
    code = compile(ast.Module(statements, []), module.__file__, "exec")

    def run(**inputs):
        names = {**vars(module), **inputs}
        exec(code, names)
        return names.get(exercise["results"][0])
    return run


def attempt(function, *values):
    """What a function returns and what it raises. If it takes too long, it is interrupted."""
    timer = threading.Timer(SECONDS, _thread.interrupt_main)  # as if somebody pressed Ctrl-C
    timer.start()
    try:
        return function(*values), None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return None, error
    finally:
        timer.cancel()


def explain(error, path):
    """An error in words, with the line of the student's file from which it came."""
    lines = [f"line {x.lineno}: {x.line}\n" for x in traceback.extract_tb(error.__traceback__)
             if x.filename == str(path)]
    text = traceback.format_exception_only(error)
    if isinstance(error, KeyboardInterrupt):
        text = [f"stopped, because it took more than {SECONDS} seconds"]
    if isinstance(error, SystemExit):
        text = ["this line ends the program"]
    return textwrap.indent("".join([*lines[-1:], *text]).strip(), "      ").strip()


def check(i, original, path):
    """The verdict on part i: "right", "not yet", or "wrong" and the lines that show it."""
    exercises, student = EXERCISES[original.__name__], load_script(path)
    exercise = exercises[i - 1]
    for other in exercises:
        if other is not exercise and other["part"] != "main":
            *owner, name = other["part"].split(".")
            owner = getattr(student, owner[0]) if owner else student
            setattr(owner, name, operator.attrgetter(other["part"])(original))
    lines = Path(original.__file__).read_text(encoding="utf-8").splitlines()
    right = get_part(original, exercise, lines, *find_lines(lines, exercise))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    marks = [f"# EXERCISE {i}:", f"# END OF EXERCISE {i}"]
    places = [n for n, line in enumerate(lines, 1) if line.strip().startswith(tuple(marks))]
    if len(places) != 2:
        return f"wrong: expected a line `{marks[0]}` and a line `{marks[1]}`"
    part, error = attempt(get_part, student, exercise, lines, *places)
    if error:
        return f"wrong: {explain(error, path)}"
    for label, case in exercise["cases"]:
        want = outcome(right, exercise, make_inputs(original, exercise, case))
        inputs = make_inputs(original, exercise, case)
        have, error = attempt(outcome, part, exercise, inputs)
        if isinstance(error, NotImplementedError):
            return "not yet"
        told = explain(error, path) if error else compare(want, have)
        if told:
            shown = make_inputs(original, exercise, case)
            if "rollout" in shown:
                shown |= zip(exercise["rollout"], map(torch.stack, zip(*shown.pop("rollout"))))
            shown |= {f"config.{name}": value for name, value in case.get("config", {}).items()}
            entries = [" ".join(f"{x.name} {x.shape} = {x.text}".split())
                       for x in describe("", shown)]
            verdict = f"wrong, see lines {places[0]} to {places[1]}: {label}"
            return "\n      ".join([verdict, *exercise.get("note", ()), *entries, told])
    return "right"


def main(argv=None):
    parser = argparse.ArgumentParser("exercise.py", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=script_path, help="dqn.py, ppo.py, ...; or a file to check")
    parser.add_argument("--check", action="store_true", help="check the parts that you filled in")
    flags = parser.parse_args(argv)
    path, name = flags.script, flags.script.stem.removeprefix("exercise_")
    if name not in EXERCISES or flags.check == (path.stem == name):
        parser.error("expected dqn.py, ppo.py, pofd.py or sac.py, "
                     "or --check and a file like exercise_dqn.py")
    new = Path(f"exercise_{name}.py")
    if not flags.check:
        if new.exists():
            parser.error(f"{new} exists already and is left as it is")
        new.write_text(make_file(name), encoding="utf-8")
        print(f"{new} has {len(EXERCISES[name])} exercises. To check your answers:\n"
              f"python demos/exercise.py --check {new}")
        return

    sys.dont_write_bytecode = True  # else Python may take two versions of one second for the same
    sys.stdout.reconfigure(errors="replace")  # what the terminal cannot show
    original, done = load_script(ROOT / f"{name}.py"), True
    _, error = attempt(load_script, path)
    if error:
        sys.exit(f"{path.name} does not run:\n      {explain(error, path)}")
    for i, exercise in enumerate(EXERCISES[name], 1):
        verdict = check(i, original, path)
        done &= verdict == "right"
        print(f"{i}  {exercise['name']:<22} {verdict}", flush=True)
    if done:
        print(f"All right. {path.name} trains as {name}.py does. It finds demos/ from {ROOT}.")
    sys.exit(not done)


if __name__ == "__main__":
    main()
