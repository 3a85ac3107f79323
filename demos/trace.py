"""Follow one update of a script line by line, from the observations to the change of the weights.

`python demos/trace.py ppo.py` trains with ppo.py and prints the lines that run in one round of
main's loop, with the values that each line read or set. A line that runs several times is shown as
it ran last. Evaluations are left out. Training is small, with 2 environments and batches of 4, but
the script's own flags change that. `--html page.html` writes a page for the browser instead."""
import argparse
import ast
import contextlib
import dataclasses
import io
import json
import re
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import load_script, make_config, script_path

SMALL = dict(num_envs=2, num_steps=2, buffer_size=6, batch_size=4, update_epochs=2,
             num_minibatches=1, learning_rate=0.004)  # so large that PPO clips in epoch 2
WHOLE = 50  # a larger array is described by its minimum, mean and maximum
LEGEND = "< a value that the line read, where it is new    > a value that the line set or changed"
Entry = namedtuple("Entry", "name shape text")  # a number or an array, ready to be shown


def describe(name, value):
    """A list of entries: one for a number or an array, several for a tuple or a distribution."""
    if isinstance(value, torch.distributions.Distribution):
        parts = vars(getattr(value, "base_dist", value))
        value = {f"{name}.{key}": parts[key] for key in ("logits", "loc", "scale") if key in parts}
    elif hasattr(value, "_fields"):
        value = {f"{name}.{key}": part for key, part in value._asdict().items()}
    elif isinstance(value, (tuple, list)) and len(value) <= 8:
        parts = [part for part in value if not isinstance(part, (tuple, list))]
        value = {f"{name}[{i}]": part for i, part in enumerate(parts)}
    if isinstance(value, dict):
        return [entry for key, part in value.items() for entry in describe(key, part)]
    if not isinstance(value, (bool, int, float, np.ndarray, np.generic, torch.Tensor)):
        return []
    array = np.asarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
    text = np.array2string(array.astype(int) if array.dtype == bool and array.ndim else array,
                           separator=", ", formatter={"float_kind": "{:.4g}".format})
    if array.size > WHOLE:
        text = f"min {array.min():.4g}, mean {array.mean():.4g}, max {array.max():.4g}"
    return [Entry(name, str(array.shape) if array.ndim else "", " ".join(text.split()))]


class Statement:
    """A statement without its body: its lines, the lines of its loop, what it reads and sets."""
    def __init__(self, node):
        parts = [x for x in ast.iter_child_nodes(node) if not isinstance(x, ast.stmt)]
        nodes = [leaf for part in parts for leaf in ast.walk(part)]
        last = max([getattr(x, "end_lineno", 0) for x in nodes], default=node.end_lineno)
        self.lines = range(node.lineno, last + 1)
        self.loop = range(node.lineno, node.end_lineno + 1) if isinstance(node, ast.For) else ()
        inner = {ast.unparse(x.target) for x in nodes if isinstance(x, ast.comprehension)}
        names = [x for x in nodes if isinstance(x, (ast.Name, ast.Attribute, ast.Subscript))
                 if not inner & {leaf.id for leaf in ast.walk(x) if isinstance(leaf, ast.Name)}]
        self.sets = [ast.unparse(x) for x in names if isinstance(x.ctx, ast.Store)]
        self.reads = [x for x in map(ast.unparse, names) if "(" not in x and x not in self.sets]


class Tracer:
    """Collects rows for round number `update` of main's loop.

    To follow a program line by line, this class uses Python's trace function, reads the frames of
    running functions, and evaluates the names in a line. Nothing else here needs such tricks."""
    def __init__(self, path, update):
        source = Path(path).read_text(encoding="utf-8-sig")
        self.path, self.source, self.update, self.round = path, source.splitlines(), update, 0
        self.rows, self.calls, self.statements, self.functions = [], [], {}, {}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                self.functions[(node.decorator_list or [node])[0].lineno] = node
            elif isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef):
                statement = Statement(node)
                self.statements.update(dict.fromkeys(statement.lines, statement))
        main = next(node for node in self.functions.values() if node.name == "main")
        self.loop = next(node for node in main.body if isinstance(node, ast.For))
        evaluation = next(node for node in self.loop.body if isinstance(node, ast.If))
        self.evaluation = range(evaluation.lineno, evaluation.end_lineno + 1)

    def evaluate(self, agent, env_id, episodes, seed):
        """Replaces the script's evaluate: all is solved after the update, so main returns."""
        return np.full(episodes, np.inf if self.round > self.update else -np.inf)

    def trace(self, frame, event, _):
        """For sys.settrace: follow main, and the script's functions that it calls in the round."""
        function, code = self.functions.get(frame.f_code.co_firstlineno), frame.f_code
        if not function or (code.co_filename, code.co_name) != (self.path, function.name):
            return None
        if self.rows:
            doc = ast.get_docstring(function) or ""
            text = f"in {function.name}({ast.unparse(function.args)}):\n{doc}"
            lines = range(function.lineno, function.end_lineno + 1)
            self.add("enter", function.lineno, text, [], replaced=lines)
        elif function.name != "main":
            return None
        margin = function.col_offset + 4
        self.calls.append(SimpleNamespace(frame=frame, margin=margin, statement=None, row=None))
        return self.follow

    def follow(self, frame, event, value):
        """For each line of a followed function, before it runs, and for its return."""
        call, statement = self.calls[-1], self.statements.get(frame.f_lineno)
        if event == "return":
            self.finish(call, 0, describe("returned", value))
            self.calls.pop()
        elif event == "line" and statement and statement is not call.statement:
            line, in_main = statement.lines[0], len(self.calls) == 1
            self.round += in_main and line == self.loop.lineno
            if self.round > self.update:
                self.finish(call, 0)
                sys.settrace(None)
            elif self.round == self.update and not (in_main and line in self.evaluation):
                self.finish(call, line)
                self.begin(call, statement, line)
        return self.follow

    def add(self, kind, number, text, notes, replaced=(), rounds=0):
        """Add a row of the kind enter (a function) or line, in place of the lines `replaced`."""
        first = number
        while self.source[first - 2].lstrip().startswith("#"):
            first -= 1
        comment = "\n".join(line.strip(" #") for line in self.source[first - 1:number - 1])
        self.rows = [row for row in self.rows if row.number not in replaced]
        self.rows.append(SimpleNamespace(
            kind=kind, depth=len(self.calls) - (kind == "line"), number=number, text=text,
            comment=comment, notes=notes, rounds=rounds))  # notes: ("<" or ">", Entry)
        return self.rows[-1]

    def begin(self, call, statement, line):
        """Start a row for a statement that is about to run."""
        call.statement, call.weights, call.row = statement, weights(call.frame), None
        if any(row.number == line for row in self.rows) and not statement.loop:
            return  # the end of a `with`
        text = [self.source[number - 1][call.margin:] for number in statement.lines]
        rows = [row for row in self.rows if row.number not in statement.loop]
        known = {x.name: x.text for row in rows for _, x in row.notes}
        reads = [("<", x) for x in self.values(statement.reads, call.frame)
                 if x.text not in (known.get(x.name), known.get(f"config.{x.name}"))
                 and not (x.name[-1] == "]" and x.text in known.values())]
        call.new = "line", line, "\n".join(text), reads
        if not statement.loop:
            call.row = self.add(*call.new)

    def finish(self, call, line, returned=()):
        """Note what the statement before `line` has set and changed."""
        if call.statement and line in call.statement.loop:  # a round replaces the one before
            start = call.statement.loop.start
            rounds = 1 + max([row.rounds for row in self.rows if row.number == start], default=0)
            call.row = self.add(*call.new, call.statement.loop, rounds)
            if start != self.loop.lineno:
                call.row.notes += [(">", x) for x in describe("rounds", rounds)]
        if not call.row:
            return
        told = [x.text for row in self.rows for _, x in row.notes]
        found = [x for x in (*self.values(call.statement.sets, call.frame), *returned)
                 if x.name[-1] != "]" or x.text not in told]
        for (name, what), new in weights(call.frame).items():
            old = call.weights.get((name, what), new)
            if name not in call.statement.sets and len(new) and not torch.equal(new, old):
                norm = (new - old if what == "change" else new).norm()
                found += describe(f"norm of {name}'s {what}", norm)
        call.row.notes += [(">", x) for x in found]
        call.row = None

    def values(self, names, frame):
        """Entries for expressions, evaluated where they stand. Where x.y is told, x is not."""
        found = {}
        for name in names:
            if re.split(r"\W", name)[0] in set(frame.f_locals) - {"_"}:
                found[name] = describe(name, eval(name, frame.f_globals, frame.f_locals))
        inner = tuple(name for name in found if found[name])
        return [entry for name in found for entry in found[name]
                if not any(x.startswith((f"{name}.", f"{name}[")) for x in inner)]


def weights(frame):
    """Vectors of the gradients and the weights of all that learns in a frame."""
    found = {}
    for name, value in frame.f_locals.items():
        parameters = [*value.parameters()] if isinstance(value, nn.Module) else [value]
        if all(isinstance(x, torch.Tensor) and x.is_leaf and x.requires_grad for x in parameters):
            gradients = [x.grad.flatten() for x in parameters if x.grad is not None]
            found[name, "gradient"] = torch.cat([torch.zeros(0), *gradients])
            found[name, "change"] = nn.utils.parameters_to_vector(parameters).detach()
    return found


def as_text(rows, width=120):
    """The lines, with their notes beside them where they fit, else below."""
    lines = []
    for row in rows:
        margin = " " * (5 + 4 * row.depth)
        if row.comment:
            lines.append(f"\n{margin}    # {row.comment}")
        text = textwrap.indent(row.text, margin)
        lines += (f"{row.number:4} {text[5:]}" if row.kind == "line" else text).splitlines()
        margin += " " * (8 + len(row.text) - len(row.text.lstrip()))
        for mark, x in row.notes:
            note = " ".join(f"{mark} {x.name} {x.shape} = {x.text}".split())
            if len(lines[-1] + note) < width - 3:
                lines[-1] += "   " + note
            else:
                lines += textwrap.wrap(margin + note, width, subsequent_indent=margin + "  ")
    return "\n".join(lines)


def as_html(rows, title):
    """The page: trace.html with the rows as data. Its script lays them out."""
    page = Path(__file__).with_name("trace.html").read_text(encoding="utf-8")
    rows = [{**vars(row), "notes": [(mark, *x) for mark, x in row.notes]} for row in rows]
    data = json.dumps({"title": title, "rows": rows}).replace("<", "\\u003c")
    return page.replace(">null<", f">{data}<", 1)


def main(argv=None):
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("trace.py", description=about, allow_abbrev=False)
    parser.add_argument("script", type=script_path, help="dqn.py or another, with its own flags")
    parser.add_argument("--update", type=int, default=1, help="which update to show, 1 by default")
    parser.add_argument("--html", type=Path, help="write a page for the browser instead of text")
    flags, others = parser.parse_known_args(argv)
    module = load_script(flags.script)
    config = make_config(module, others, **SMALL)
    updates = -(-config.total_timesteps // (config.num_envs * getattr(config, "num_steps", 1)))
    if not 1 <= flags.update <= updates:
        parser.error(f"expected --update from 1 to {updates:,}: "
                     f"training ends after {config.total_timesteps:,} steps")
    tracer = Tracer(module.__file__, flags.update)
    module.evaluate = tracer.evaluate
    sys.settrace(tracer.trace)
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="ignore"):
        module.main(dataclasses.replace(config, eval_frequency=1), report=lambda row: None)
    changed = [f"{name} {value}" for name, value in vars(config).items()
               if name != "env_id" and value != getattr(module.Config, name)]
    title = f"{flags.script.name}, update {flags.update}: {', '.join([config.env_id, *changed])}"
    if flags.html:
        flags.html.write_text(as_html(tracer.rows, title), encoding="utf-8")
    else:
        print(f"{title}\n{LEGEND}\n{as_text(tracer.rows)}")


if __name__ == "__main__":
    main()
