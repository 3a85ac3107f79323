"""Learn by doing: a script without its key functions, and a check of what you write instead.

`python demos/exercise.py ppo.py` writes exercise_ppo.py into the current folder. Fill in
its functions, in any order. `python demos/exercise.py --check exercise_ppo.py` judges each: right,
not yet, or wrong, with the smallest case that shows it."""
import _thread
import argparse
import ast
import json
import operator
import sys
import textwrap
import threading
import traceback
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import ROOT, load_script

EXERCISES = json.loads(Path(__file__).with_name("exercises.json").read_text(encoding="utf-8"))
SECONDS = 10  # that a function may take for a case


class Times(nn.Module):
    """Replaces all networks, so that a case can be computed by hand: obs times a factor."""
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, obs, action=None):
        """(B, outputs), or for two critics (2, B), which add 1 and -0.5 times the action."""
        value = self.factor * obs
        return value if action is None else (value + torch.tensor([1.0, -0.5]) * action).T

    def sample(self, obs):
        return self(obs), self(obs)[:, 0] - 1


def make_file(name):
    """The text of a script with a hint in place of each function's code."""
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    for exercise in reversed(EXERCISES[name]):  # they are in the order of the script
        node = ast.parse(source)
        for part in exercise["function"].split("."):
            node = next(x for x in node.body if getattr(x, "name", "") == part)
        code = node.body[1]  # the first statement after the docstring
        margin = " " * code.col_offset
        hint = textwrap.fill(f"EXERCISE: {exercise['hint']} Read {exercise['paper']}.", 90)
        blank = textwrap.indent(hint, f"{margin}# "), f"{margin}raise NotImplementedError"
        lines[code.lineno - 1:node.end_lineno] = blank
    return "\n".join([*lines, ""])


def make_inputs(module, exercise, case):
    """The arguments of a function by name. In exercises.json, a list is a tensor."""
    inputs = exercise["inputs"] | case
    learned = exercise.get("learned", [])
    for name, value in inputs.items():
        if isinstance(value, dict):
            inputs[name] = Times(value["times"])
        elif isinstance(value, list) or name in learned:
            inputs[name] = torch.tensor(value, dtype=torch.float32, requires_grad=name in learned)
    if "next_obs" in inputs:
        inputs["batch"] = module.Batch(*map(inputs.pop, module.Batch._fields))
    return inputs


def outcome(module, exercise, case):
    """What a function returns, and the gradients that it lets flow back: {name: value}."""
    inputs = make_inputs(module, exercise, case)
    torch.manual_seed(0)
    result = operator.attrgetter(exercise["function"])(module)(**inputs)
    results = result if isinstance(result, (tuple, list)) else [result]
    found = {"number of results": len(results), **dict(zip(exercise["results"], results))}
    learned = [x.sum() for x in results if isinstance(x, torch.Tensor) and x.requires_grad]
    if learned:
        sum(learned).backward()
    for name, value in inputs.items():
        gradient = getattr(getattr(value, "factor", value), "grad", None)
        if name not in exercise.get("free", []) and gradient is not None and gradient.any():
            found[f"gradient of {name}"] = gradient
    return {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in found.items()}


def compare(want, have):
    """The first difference between two outcomes, as a sentence."""
    for name in want | have:
        x, y = want.get(name), have.get(name)
        try:
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5, check_dtype=False)
        except (AssertionError, TypeError):  # it raises TypeError where one is a NumPy array
            return f"{name}: expected {x!r}, got {y!r}"
    return ""


def attempt(path, function, *values):
    """What a function returns, and what went wrong. If it takes too long, it is interrupted."""
    timer = threading.Timer(SECONDS, _thread.interrupt_main)  # as if somebody pressed Ctrl-C
    timer.start()
    try:
        return function(*values), ""
    except NotImplementedError:
        return None, "not yet"
    except (KeyboardInterrupt, SystemExit):
        return None, f"it ends the program, or takes more than {SECONDS} seconds"
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        lines = [f"line {x.lineno}: {x.line}\n" for x in places if x.filename == str(path)]
        return None, "".join([*lines[-1:], *traceback.format_exception_only(error)]).strip()
    finally:
        timer.cancel()


def check(exercise, original, student, path):
    """The verdict on a function: "right", "not yet", or "wrong" and the case that shows it."""
    for label, case in exercise["cases"]:
        want = outcome(original, exercise, case)
        have, complaint = attempt(path, outcome, student, exercise, case)
        if complaint == "not yet":
            return complaint
        complaint = complaint or compare(want, have)
        if complaint:
            values = exercise["inputs"] | case
            shown = [f"{x} = {values[x]}" for x in values if not isinstance(values[x], dict)]
            lines = "\n".join([*exercise.get("note", []), *shown, complaint])
            return f"wrong: {label}\n{textwrap.indent(lines, '      ')}"
    return "right"


def main(argv=None):
    parser = argparse.ArgumentParser("exercise.py", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="dqn.py, ppo.py, ...; or a file to check")
    parser.add_argument("--check", action="store_true", help="check what you filled in")
    flags = parser.parse_args(argv)
    path, name = flags.script.resolve(), flags.script.stem.removeprefix("exercise_")
    if name not in EXERCISES or flags.check == (path.stem == name):
        parser.error("expected a script such as ppo.py, or --check exercise_ppo.py")
    if not flags.check:
        new = Path(f"exercise_{name}.py")
        if new.exists():
            parser.error(f"{new} exists already and is left as it is")
        new.write_text(make_file(name), encoding="utf-8")
        print(f"Write your code into {new}. Then: python demos/exercise.py --check {new}")
        return

    sys.stdout.reconfigure(errors="replace")  # what the terminal cannot show
    original = load_script(f"{name}.py")
    student, complaint = attempt(path, load_script, path)
    if complaint:
        sys.exit(f"{path.name} does not run: {complaint}")
    verdicts = []
    for exercise in EXERCISES[name]:
        verdicts.append(check(exercise, original, student, path))
        print(f"{exercise['function']:<18} {verdicts[-1]}", flush=True)
    sys.exit(verdicts != ["right"] * len(verdicts))


if __name__ == "__main__":
    main()
