"""Follow one update of a script line by line, from the observations to the new weights.

`python demos/trace.py ppo.py --html page.html` begins to train with ppo.py, and writes a page for
the browser with the lines that run in the first round of main's loop, and the values that each
line read or set. A line that runs several times is shown as it ran last. Evaluations are left out.
Training is small, with 2 environments and batches of 4, but the script's own flags change that."""
import argparse
import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import load_script, make_config

SMALL = dict(total_timesteps=1, num_envs=2, num_steps=2, buffer_size=6, batch_size=4,
             update_epochs=2, num_minibatches=1, learning_rate=0.004)  # PPO clips in epoch 2
WHOLE = 50  # a larger array is described by its minimum, mean and maximum


def describe(name, value):
    """A list of (name, shape, text): one for a number or an array, several for what has parts."""
    if isinstance(value, nn.Module):
        gradients = [x.grad for x in value.parameters() if x.grad is not None]
        tensors = {"weights": [*value.parameters()], "gradient": gradients}
        fields = {key: nn.utils.parameters_to_vector(x) for key, x in tensors.items() if x}
    elif hasattr(value, "_asdict"):  # a named tuple
        fields = value._asdict()
    elif isinstance(value, (bool, int, float, np.ndarray, np.generic, torch.Tensor)):
        array = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        formats = {"float_kind": "{:.4g}".format, "bool": "{:d}".format}
        text = np.array2string(array, separator=", ", formatter=formats)
        if array.size > WHOLE:
            text = f"min {array.min():.4g}, mean {array.mean():.4g}, max {array.max():.4g}"
        return [(name, str(array.shape) if array.ndim else "", " ".join(text.split()))]
    else:
        return []
    return [entry for key, x in fields.items() for entry in describe(f"{name}.{key}", x)]


def find_names(statement, context):
    """The names that a statement reads (ast.Load) or sets (ast.Store), without its body."""
    parts = [part for part in ast.iter_child_nodes(statement) if not isinstance(part, ast.stmt)]
    names = [x for part in parts for x in ast.walk(part) if isinstance(x, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, context)]


class Tracer:
    """Collects rows for the first round of main's loop.

    To follow a program line by line, this class uses Python's trace function, and reads the
    frames of running functions. Nothing else here needs such tricks."""
    def __init__(self, path):
        source = Path(path).read_text(encoding="utf-8-sig")
        self.path, self.lines = path, source.splitlines()
        self.calls = []  # of functions that run now
        self.rows = {}  # by the numbers of the lines that led to it, and its own
        self.told = {}  # by name, the value that was shown last, and the line where
        self.functions, self.statements = {}, {}  # by line
        for node in ast.walk(ast.parse(source)):  # what is inside a statement comes after it
            if isinstance(node, ast.FunctionDef):
                self.functions[(node.decorator_list or [node])[0].lineno] = node
            elif isinstance(node, ast.stmt):
                lines = range(node.lineno, node.end_lineno + 1)
                self.statements |= dict.fromkeys(lines, node)
        main = next(x for x in self.functions.values() if x.name == "main")
        self.loop = next(x for x in main.body if isinstance(x, (ast.For, ast.While)))
        evaluation = next(x for x in self.loop.body if isinstance(x, ast.If))
        loop = range(self.loop.lineno, self.loop.end_lineno + 1)
        self.shown = {*loop} - {*range(evaluation.lineno, evaluation.end_lineno + 1)}

    def trace(self, frame, event, _):
        """For sys.settrace: follow main, and the script's functions that it calls in the round."""
        code = frame.f_code
        function = self.functions.get(code.co_firstlineno)
        if not function or (code.co_filename, code.co_name) != (self.path, function.name):
            return None
        if self.rows:
            signature = f"in {function.name}({ast.unparse(function.args)}):"
            doc = ast.get_docstring(function) or ""
            self.add("enter", function.lineno, f"{signature}\n{doc}")
        elif function.name != "main":
            return None
        self.calls.append(SimpleNamespace(statement=None))
        return self.follow

    def follow(self, frame, event, value):
        """For each line of a followed function, before it runs, and for its return."""
        call, statement = self.calls[-1], self.statements.get(frame.f_lineno)
        if event == "return":
            self.finish(call, frame, describe("returned", value))
            self.calls.pop()
        elif event == "line" and statement is not call.statement:
            self.finish(call, frame)
            in_main = len(self.calls) == 1
            if in_main and self.rows and statement is self.loop:
                sys.settrace(None)  # this is the second round
            elif not in_main or frame.f_lineno in self.shown:
                self.begin(call, frame, statement)
        return self.follow

    def begin(self, call, frame, statement):
        """Start the row of a statement that is about to run, with what it reads."""
        first = above = statement.lineno - 1
        last = statement.lineno if hasattr(statement, "body") else statement.end_lineno
        while self.lines[above - 1].lstrip().startswith("#"):
            above -= 1
        comment = " ".join(line.strip(" #") for line in self.lines[above:first])
        row = self.add("line", statement.lineno, "\n".join(self.lines[first:last]), comment)
        before = {name: describe(name, value) for name, value in frame.f_locals.items()}
        call.row, call.statement, call.before = row, statement, before
        for name in dict.fromkeys(find_names(statement, ast.Load)):
            for entry in before.get(name, []):
                value, number = self.told.get(entry[0], (None, None))
                if value != entry or number >= row["number"]:  # not told further up
                    self.note(row, "<", entry)

    def finish(self, call, frame, returned=()):
        """Note what the statement has set and changed."""
        if call.statement:
            sets = find_names(call.statement, ast.Store)
            found = [*returned]
            for name, value in frame.f_locals.items():
                for entry in describe(name, value):
                    if name in sets or entry not in call.before.get(name, []):
                        found.append(entry)
            for entry in found:
                self.note(call.row, ">", entry)
        call.statement = None

    def add(self, kind, number, text, comment=""):
        """A row of the kind enter (a function) or line. It replaces what ran there before."""
        path = [call.statement.lineno for call in self.calls if call.statement]
        row = dict(kind=kind, depth=len(path), number=number, text=text, comment=comment, notes=[])
        self.rows[(*path, number)] = row
        return row

    def note(self, row, mark, entry):
        """Show an entry in a row."""
        row["notes"].append((mark, *entry))
        self.told[entry[0]] = entry, row["number"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("script", type=load_script, help="dqn.py or another, with its own flags")
    parser.add_argument("--html", type=Path, required=True, help="the page to write")
    flags, others = parser.parse_known_args(argv)
    module = flags.script
    config = make_config(module, others, **SMALL)
    module.evaluate = lambda agent, env_id, episodes, seed: np.full(episodes, -np.inf)
    tracer = Tracer(module.__file__)
    sys.settrace(tracer.trace)
    with contextlib.redirect_stdout(io.StringIO()):
        module.main(config, report=lambda row: None)
    title = f"{module.__name__}.py, one update: {config.env_id}"
    data = json.dumps({"title": title, "rows": [*tracer.rows.values()]}).replace("<", "\\u003c")
    page = Path(__file__).with_name("trace.html").read_text(encoding="utf-8")
    flags.html.write_text(page.replace(">null<", f">{data}<", 1), encoding="utf-8")


if __name__ == "__main__":
    main()
