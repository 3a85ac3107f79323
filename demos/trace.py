"""Follow one update of a script line by line, from the observation to the change of the weights.

`python demos/trace.py ppo.py` runs the script's own `main` for one round of its loop and prints each line
that ran, with what it read (<) and what it bound or changed (>). A loop is shown in its last round, a
function at its first call. Runs are small, with 2 environments and batches of 4, unless flags of the script
say otherwise. `--html page.html` writes the same as a page for the browser."""
import argparse
import ast
import json
import re
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import load_script, make_config, script_path

SMALL = dict(num_envs=2, num_steps=2, buffer_size=6, batch_size=4, update_epochs=1, num_minibatches=1)
WHOLE = 50  # arrays of more values than this are told by their minimum, mean and maximum
Entry = namedtuple("Entry", "name shape text array")  # a number or an array, ready to be shown


def describe(name, value):
    """Entries for a value: one for a number or an array, one for each array in a tuple or a policy."""
    if isinstance(value, torch.distributions.Distribution):
        parts = vars(getattr(value, "base_dist", value))
        value = {f"{name}.{key}": parts[key] for key in ("logits", "loc", "scale") if key in parts}
    elif isinstance(value, (tuple, list)) and len(value) <= 8:
        keys = [f".{key}" for key in getattr(value, "_fields", ())] or [f"[{i}]" for i in range(len(value))]
        value = {name + key: x for key, x in zip(keys, value) if not isinstance(x, (tuple, list))}
    if isinstance(value, dict):
        return [entry for key, part in value.items() for entry in describe(key, part)]
    if not isinstance(value, (bool, int, float, np.ndarray, np.generic, torch.Tensor)):
        return []
    array = np.array(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
    text = f"min {array.min():.4g}, mean {array.mean():.4g}, max {array.max():.4g}" if array.size else "empty"
    if 0 < array.size <= WHOLE:
        text = np.array2string(array.astype(int) if array.dtype == bool and array.ndim else array, 10**6,
                               separator=", ", formatter={"float_kind": "{:.4g}".format})
    return [Entry(name, str(array.shape) if array.ndim else "", " ".join(text.split()), array)]


class Statement:
    """A statement without its body: its lines, the lines of its loop, and what it reads and binds."""
    def __init__(self, node):
        nodes = [leaf for part in ast.iter_child_nodes(node) if not isinstance(part, ast.stmt)
                 for leaf in ast.walk(part)]
        last = max([getattr(x, "end_lineno", 0) for x in nodes], default=node.end_lineno)
        self.lines = range(node.lineno, last + 1)
        self.loop = range(last + 1, node.end_lineno + 1) if isinstance(node, ast.For) else ()
        self.again = isinstance(node, (ast.For, ast.With))  # it is visited at the end, too
        names = [x for x in nodes if isinstance(x, (ast.Name, ast.Attribute, ast.Subscript))]
        self.binds = [ast.unparse(x) for x in names if isinstance(x.ctx, ast.Store)]
        self.reads = [x for x in map(ast.unparse, names) if "(" not in x and x not in self.binds]


def values(names, frame):
    """Entries for expressions, evaluated where they stand. Where x.y or x[i] is told, x is not."""
    found = {name: describe(name, eval(name, frame.f_globals, frame.f_locals)) for name in names
             if re.split(r"\W", name)[0] in {*frame.f_locals} - {"_"}}
    return [entry for name, entries in found.items() for entry in entries
            if not any(found[x] for x in found if x.startswith((f"{name}.", f"{name}[")))]


def weights(frame):
    """{label: vector} for the gradients and the weights of each network in a frame."""
    found = {}
    for name, network in frame.f_locals.items():
        if isinstance(network, torch.nn.Module):
            gradients = [x.grad.flatten() for x in network.parameters() if x.grad is not None]
            found[f"norm of {name}'s gradient"] = torch.cat([torch.zeros(0), *gradients])
            found[f"norm of {name}'s change"] = torch.cat([x.data.flatten() for x in network.parameters()])
    return found


class Tracer:
    """Collects rows for what `main` does in its loop, until the evaluation that ends a round."""
    class UpdateSeenError(BaseException):
        """Ends `main` from within."""

    def __init__(self, module, rounds):
        tree, self.source = ast.parse(module.source), module.source.splitlines()
        self.path, self.rounds, self.calls, self.rows = module.__file__, rounds, [], []
        self.statements, self.functions = {}, {}  # by line
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self.functions[(node.decorator_list or [node])[0].lineno] = node
            elif isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef):
                statement = Statement(node)
                self.statements.update(dict.fromkeys(statement.lines, statement))
                if isinstance(node, ast.For) and ast.unparse(node.target) == "step":
                    self.loop = node  # of `main`

    def add(self, kind, depth, number, text):
        """Add a row, of the kind mark (a comment), enter (a function), line, or back (from a function)."""
        self.rows.append(SimpleNamespace(kind=kind, depth=depth, number=number, text=text, rounds=0,
                                         notes=[], index=len(self.rows)))  # notes: ("<" or ">", Entry)
        return self.rows[-1]

    def trace(self, frame, event, _):
        """For sys.settrace: follow `main`, and each function of the script at its first call in the loop."""
        function = self.functions.get(frame.f_code.co_firstlineno)
        known = frame.f_code.co_filename == self.path and function and function.name == frame.f_code.co_name
        if not known or function.name != "main" and not self.rows:
            return None
        if ("enter", function.lineno) in [(row.kind, row.number) for row in self.rows]:
            return self.catch
        if self.rows:
            text = f"in {function.name}({ast.unparse(function.args)}):\n{ast.get_docstring(function) or ''}"
            self.add("enter", len(self.calls), function.lineno, text)
        self.calls.append(SimpleNamespace(frame=frame, margin=function.col_offset + 4, returned=[],
                                          statement=None, row=None, kept={}, weights={}))
        return self.follow

    def catch(self, frame, event, value):
        """For each line of a function that is not followed: keep what it returns."""
        if event == "return" and self.calls:
            self.calls[-1].returned += describe(f"{frame.f_code.co_name}()", value)
        return self.catch

    def follow(self, frame, event, value):
        """For each line of a followed function, before it runs, and for its return."""
        call, statement = self.calls[-1], self.statements.get(frame.f_lineno)
        if event == "return":
            self.finish(call, 0)
            self.calls.pop()
            self.catch(frame, event, value)
        elif event == "line" and statement and statement is not call.statement:
            line = statement.lines[0]
            if len(self.calls) > 1 or self.loop.lineno <= line <= self.loop.end_lineno:
                self.finish(call, line)
                if self.rows and self.rows[0].rounds == self.rounds and line == self.loop.body[-1].lineno:
                    raise self.UpdateSeenError
                self.begin(call, statement, line)
        return self.follow

    def begin(self, call, statement, line):
        """Add a row for a statement about to run, and one for a comment above it. A loop keeps its row."""
        call.statement, call.row, call.weights = statement, call.kept.get(line), weights(call.frame)
        if call.row:
            return
        known, top = {x.name: x.text for row in self.rows for _, x in row.notes}, line
        while self.source[top - 2].lstrip().startswith("#"):
            top -= 1
        for kind, first, last in ("mark", top, line - 1), ("line", line, statement.lines[-1]):
            text = "\n".join(text[call.margin:] for text in self.source[first - 1:last])
            call.row = self.add(kind, len(self.calls) - 1, first, text) if text else None
        call.row.notes = [("<", x) for x in values(statement.reads, call.frame)
                          if x.text not in (known.get(x.name), known.get(f"config.{x.name}"))
                          and not (x.name.startswith("self.") and x.array.size > 8)]  # no buffer
        call.kept |= {line: call.row} if statement.again else {}

    def finish(self, call, line):
        """Note what the latest statement of a call has bound and changed, now that `line` is to run."""
        row, loop = call.row, call.statement and call.statement.loop
        if row is None or loop and line not in loop:
            return  # a loop that is over stays as it is
        if loop:  # a new round: forget the one before
            del self.rows[row.index + 1:]
            call.kept = {key: kept for key, kept in call.kept.items() if key not in loop}
            reads = [note for note in row.notes if note[0] == "<"][bool(row.rounds):]
            row.rounds += 1
            row.notes = [("<", *describe("rounds", row.rounds)), *reads]
        found = values(call.statement.binds, call.frame)
        for label, new in weights(call.frame).items():
            old = call.weights.get(label, new)
            if len(new) and not torch.equal(new, old):
                found += describe(label, (new - old if label.endswith("change") else new).norm())
        told = {x.text for x in found} | {x.text for later in self.rows[row.index:] for _, x in later.notes}
        found += [x for x in call.returned if x.text not in told]
        call.returned = []
        if found and self.rows[-1] is not row:
            row = self.add("back", row.depth, row.number, "")
        row.notes += [(">", x) for x in found]


def as_text(rows, width=150):
    """Source with its notes beside it where they fit, else below."""
    lines = []
    for row in rows:
        margin = " " * (5 + 4 * row.depth)
        text = [""] * (row.kind == "mark") + [margin + line for line in row.text.splitlines()]
        if row.kind == "line":
            text[0] = f"{row.number:4} {text[0][5:]}"
        margin += " " * (8 + len(row.text) - len(row.text.lstrip()))
        for mark, x in row.notes:
            note = f"{mark} {x.name} {x.shape} = {x.text}".replace("  =", " =")
            if text and len(text[-1] + note) < width - 3:
                text[-1] += "   " + note
            else:
                text += textwrap.wrap(note, width, initial_indent=margin, subsequent_indent=margin + "  ")
        lines += text
    return "\n".join(lines)


def as_html(rows, title):
    """The page: trace.html, whose script lays out the rows."""
    rows = [{**vars(row), "notes": [{"mark": mark, **x._asdict(), "array": np.nan_to_num(
        np.atleast_1d(x.array)[:64].astype(float)).tolist()} for mark, x in row.notes]} for row in rows]
    data = json.dumps({"title": title, "rows": rows}).replace("<", "\\u003c")
    return Path(__file__).with_name("trace.html").read_text().replace("DATA", data, 1)


def main(argv=None):
    parser = argparse.ArgumentParser("trace.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("script", type=script_path, help="dqn.py or another; its settings are flags, too")
    parser.add_argument("--update", type=int, default=1, help="which one, counted from 1")
    parser.add_argument("--html", type=Path, help="write a page for the browser in place of text")
    flags, others = parser.parse_known_args(argv)
    if flags.update < 1:
        parser.error("expected --update 1 or more")
    module = load_script(flags.script)
    config, tracer = make_config(module, others, **SMALL), Tracer(module, flags.update)
    sys.settrace(tracer.trace)
    try:
        module.main(config, report=lambda row: None)
        parser.error(f"training ends before update {flags.update}")
    except tracer.UpdateSeenError:
        tracer.calls[0].frame.f_locals["envs"].close()
    finally:
        sys.settrace(None)
    settings = (f"{name} {value}" for name, value in vars(config).items()
                if name == "env_id" or value != getattr(module.Config, name))
    title = f"{flags.script.name}, update {flags.update}: {', '.join(settings)}"
    if flags.html:
        flags.html.write_text(as_html(tracer.rows, title))
    else:
        print(f"{title}\n{as_text(tracer.rows)}")


if __name__ == "__main__":
    main()
