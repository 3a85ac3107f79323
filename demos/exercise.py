"""Learn by doing: a script with its key parts left out, and a check of what you put in their place.

`python demos/exercise.py ppo.py` writes exercise_ppo.py into the current folder. Fill in its parts, in any
order. `python demos/exercise.py --check exercise_ppo.py` says of each: right, not yet, or wrong, with the
smallest case that shows it. While a part is checked, the other parts are the original's."""
import argparse
import ast
import copy
import dataclasses
import inspect
import json
import re
import sys
import textwrap
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import ROOT, load_script, script_path
from demos.trace import WHOLE, describe

EXERCISES = json.loads(Path(__file__).with_name("exercises.json").read_text())


class Table(nn.Module):
    """A network whose outputs can be read off: one row for each observation 0, another for each 1."""
    def __init__(self, at_obs, at_next_obs):
        super().__init__()
        self.at_obs, self.at_next_obs = nn.Parameter(at_obs), nn.Parameter(at_next_obs)

    def forward(self, obs, action=None):
        """(B, outputs); or (2, B) as two critics, which are given actions (B, 1), too."""
        value = torch.where(obs > 0, self.at_next_obs, self.at_obs)
        return value if action is None else (value + action * torch.tensor([1.0, -0.5])).T

    def sample(self, obs):
        """As an actor: actions (B, 1) and their log-probabilities (B,)."""
        return self(obs)[:, :1], self(obs)[:, 1]


def make_inputs(original, size, special):
    """Inputs by the names that parts use, (B, ...) or (T, N, ...), B = T = `size`. `special` sets some."""
    def draw(*shape):
        return (2 * torch.randn(*shape)).round(decimals=1)  # easy to read

    torch.manual_seed(size + 7)
    N, discrete = 3 if size == 5 else 1, original.__name__ == "dqn"
    x = {"gamma": 0.9, "gae_lambda": 0.8, "clip_coef": 0.2, "target_entropy": -1, "alpha": torch.tensor(0.5),
         "log_alpha": torch.tensor(-1.0), "demo_logits": draw(size + 1), "rng": np.random.default_rng(0),
         "pairs": draw(size, N, 1), "discriminator": nn.Flatten(-2), "action_space": gym.spaces.Discrete(3)}
    x |= {name: draw(size) for name in ("log_prob", "old_log_prob", "advantage", "logits", "agent_logits")}
    x |= {name: draw(size, N) for name in ("reward", "value", "next_value")}
    x |= {name: torch.zeros(size, N) for name in ("terminated", "done", "self")}
    x |= {name: Table(draw(size, 2 + discrete), draw(size, 2 + discrete)) for name in (
        "q_network", "target_network", "critics", "target_critics", "actor", "agent")}
    x |= {name: torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value
          for name, value in special.items()}
    x["config"] = dataclasses.replace(original.Config(), num_envs=size, **special.get("config", {}))
    if hasattr(original, "ActorCritic"):
        x["self"] = x["agent"] = original.ActorCritic(*[gym.spaces.Box(-1, 1, (N,))] * 2, 4)
        x["agent"].log_std.data, x["reset"] = draw(N), torch.cat([torch.zeros(1, N), x["done"][:-1]])
        x |= {name: draw(size, N, N) for name in ("obs", "next_obs", "action")}
        x["steps"] = re.search(r"(\w.*) = arrays", original.source)[1].split(", ")  # what a rollout holds
        x["rollout"] = list(zip(*(x[name].numpy() for name in x["steps"])))
    else:
        x["self"], obs = Table(x["self"], torch.zeros_like(x["self"])), torch.zeros(size, 1)
        x["obs"], x["action"] = obs, torch.arange(size) % 3.0 if discrete else draw(size, 1).requires_grad_()
        x["batch"] = original.Batch(obs, x["action"], x["reward"][:, 0], obs + 1, x["terminated"][:, 0])
    if "epsilon" in x:  # the observation is the greedy action
        x["obs"], x["action"] = np.arange(size)[:, None] % 3 // 2 * 2, None
        x["agent"] = SimpleNamespace(act=lambda obs: obs[:, 0].copy())
    for name in ("log_prob", "log_alpha", "logits", "agent_logits", "demo_logits"):
        x[name].requires_grad_()
    return x


def outcome(function, inputs):
    """{name: Entry} of what a part returns, of the gradients of its sum, and of its inputs afterwards."""
    torch.manual_seed(0)
    inputs = copy.deepcopy(inputs)
    found = function(**inputs)
    if isinstance(found, tuple) and isinstance(found[0], torch.distributions.Distribution):
        policy, value = found
        found = {"mean": policy.mean, "standard deviation": policy.stddev, "entropy": policy.entropy(),
                 "log_prob(mean + 0.5)": policy.log_prob(policy.mean.detach() + 0.5), "value": value}
    elif isinstance(found, (tuple, list)):
        found = {f"result {i}": x for i, x in enumerate(found, 1)}
    elif not isinstance(found, dict):
        found = {"result": found}
    elif np.size(found.get("action", 0)) > 50:
        found = {"shares of the actions": np.bincount(found["action"], minlength=3) / len(found["action"])}
    learned = [x.sum() for x in found.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    if learned:
        sum(learned).backward()
    for name, value in inputs.items():
        for key, x in value.named_parameters(name) if isinstance(value, nn.Module) else [(name, value)]:
            if isinstance(x, torch.Tensor) and key not in found:
                gradient = x.grad if x.grad is not None and x.grad.any() else None
                found |= {f"gradient of {key}": gradient, f"{key} afterwards": x}
    return {name: next(iter(describe(name, value)), None) for name, value in found.items()}


def compare(want, have):
    """The differences between the outcomes of two parts, each as a sentence."""
    for name, x in want.items():
        y, tolerance = have.get(name), 0.05 if name.startswith("shares") else 1e-5  # shares are random
        if x is not y and not (x and y and x.shape == y.shape
                               and np.allclose(x.array, y.array, 1e-4, tolerance)):
            expected, got = (f"{entry.shape} {entry.text}".strip() if entry else "none" for entry in (x, y))
            yield f"{name}: expected {expected}, got {got}"


def find_blank(source, exercise):
    """The first and the last line of a part, found by name and by how the lines begin."""
    node, lines = ast.parse(source), source.splitlines()
    for name in exercise["part"].split("."):
        node = next(x for x in node.body if getattr(x, "name", "") == name)
    if "first" not in exercise:
        return node.body[1].lineno, node.end_lineno  # all but the docstring
    first, last = ([x for x in ast.walk(node) if isinstance(x, ast.stmt) and lines[
        x.lineno - 1].strip().startswith(exercise[key])][0] for key in ("first", "last"))
    return first.lineno, last.end_lineno


def load_original(name):
    """The script as a module, with the functions that are exercises only."""
    extra = "".join(exercise["extra"] + "\n\n\n" for exercise in EXERCISES[name] if "extra" in exercise)
    path = ROOT / f"{name}.py"
    return load_script(path, path.read_text().replace("def evaluate(", f"{extra}def evaluate("))


def make_file(original):
    """The text of the script with a hint in place of each part."""
    lines, parts = original.source.splitlines(), enumerate(EXERCISES[original.__name__], 1)
    blanks = [(*find_blank(original.source, exercise), i, exercise) for i, exercise in parts]
    for first, last, i, exercise in sorted(blanks, key=lambda blank: -blank[0]):  # from the end on
        margin = lines[first - 1][:-len(lines[first - 1].lstrip())]
        text = [f"# EXERCISE {i}: {exercise['hint']}", f"# Read {exercise['paper']}.",
                f'raise NotImplementedError("exercise {i}")', f"# END OF EXERCISE {i}"]
        lines[first - 1:last] = [margin + line for part in text for line in textwrap.wrap(
            part, 100 - len(margin), subsequent_indent="# ", break_on_hyphens=False)]
    return "\n".join(["# Replace each NotImplementedError, between its EXERCISE and END, then run\n# python "
                      f"demos/exercise.py --check exercise_{original.__name__}.py", *lines, ""])


def get_part(module, exercise, code, above=0):
    """A part as a function of its inputs: a function of the module, or `code`, below `above` other lines."""
    def run(**names):
        names = {**vars(module), **names}
        exec(compile("\n" * above + textwrap.dedent(code), module.__file__, "exec"), names)
        return {exercise["result"]: names[exercise["result"]]}
    return run if "result" in exercise else eval(exercise["part"], vars(module))


def check(i, exercise, original, student):
    """The verdict on a part: "right", "not yet", or "wrong" and the lines that show it."""
    own = re.search(rf"# EXERCISE {i}\b.*?\n(.*?)\n *# END OF EXERCISE {i}\n", student.source, re.S)
    if not own:
        return f"wrong: expected the lines `# EXERCISE {i}` and `# END OF EXERCISE {i}`"
    lines, (first, last) = original.source.splitlines(), find_blank(original.source, exercise)
    above, code = student.source[:own.start(1)].count("\n"), "\n".join(lines[first - 1:last])
    source = "\n" * (above + 1 - first) + "\n".join([*lines[:first - 1], own[1], *lines[last:]])
    module = load_script(Path(student.__file__), source, vars(student))  # the original, but for this part
    right, part = get_part(original, exercise, code), get_part(module, exercise, own[1], above)
    names = re.findall(r"\w+", code) if "result" in exercise else inspect.signature(right).parameters
    for label, size, special in exercise["cases"]:
        inputs = make_inputs(original, size, special)
        shown = {name: inputs[name] for name in dict.fromkeys(names) if name in inputs}
        given = inputs if "result" in exercise else shown
        want, config = outcome(right, given), inputs["config"]
        try:
            with warnings.catch_warnings(record=True) as warned:  # of shapes that do not fit
                told = list(compare(want, outcome(part, given)))[:1]
        except NotImplementedError:
            return "not yet"
        except Exception as error:
            places = [f"line {x.lineno}: {x.line}" for x in traceback.extract_tb(error.__traceback__)
                      if x.filename == student.__file__]
            told = [*places[-1:], f"{type(error).__name__}: {error}"]
        if told:
            shown |= {key: inputs[key] for key in (inputs["steps"] if "rollout" in shown else ())}
            shown |= {f"config.{key}": getattr(config, key) for key in re.findall(r"config\.(\w+)", code)}
            told += [str(warning.message).split(". ")[0] for warning in warned]
            for name in [name for name, x in shown.items() if isinstance(x, nn.Module)]:
                shown |= shown.pop(name).named_parameters(name)
            entries = [f"{x.name} {x.shape} = {x.text}" for x in describe("", shown) if x.array.size <= WHOLE
                       and not re.search(r"batch\..*obs|weight|bias", x.name)]
            text = "\n      ".join([f"wrong: {label}", *exercise.get("note", ()), *entries, *told])
            text = re.sub(r"torch.Size\(\[(.*?)\]\)", r"\1", text).replace("  =", " =")
            return re.sub(r"\.at_(\w+)", r"(\1)", text)
    return "right"


def main(argv=None):
    parser = argparse.ArgumentParser("exercise.py", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=script_path, help="dqn.py, ppo.py, pofd.py or sac.py; a file to check")
    parser.add_argument("--check", action="store_true", help="check the parts that you have filled in")
    flags = parser.parse_args(argv)
    path, name = flags.script, flags.script.stem.removeprefix("exercise_")
    if name not in EXERCISES or flags.check == (path.stem == name):
        parser.error("expected dqn.py, ppo.py, pofd.py or sac.py; with --check a file like exercise_dqn.py")
    original, new = load_original(name), Path(f"exercise_{name}.py")
    if not flags.check:
        if new.exists():
            parser.error(f"{new} exists already and is left as it is")
        new.write_text(make_file(original))
        print(f"{new} has {len(EXERCISES[name])} exercises. Check: python demos/exercise.py --check {new}")
        return

    try:
        student, done = load_script(path), True
    except SyntaxError as error:
        sys.exit("".join(traceback.format_exception_only(error)))
    for i, exercise in enumerate(EXERCISES[name], 1):
        verdict = check(i, exercise, original, student)
        done &= verdict == "right" or verdict == "not yet" and "extra" in exercise
        print(f"{i}  {exercise['name']:<22} {verdict}")
    if done:
        demo = f' --demo "{ROOT}/demos/{original.Config.env_id.split(":")[-1]}.npz"' * (name == "pofd")
        print(f'All right. To train with your lines: PYTHONPATH="{ROOT}" python {path.name}{demo}')
    sys.exit(not done)


if __name__ == "__main__":
    main()
