"""Follow one update of a script, from the observation before env.step to the change of the weights.

`python demos/trace.py ppo.py` runs the script's own `train` until its first gradient step and prints, once
and in the order of execution, each line that ran and, beside or under it, what it read and bound: small
arrays whole, large ones as minimum, mean and maximum. The run is small (2 environments, batches of 4), or as
flags of the script say: `python demos/trace.py dqn.py --gamma 0.9 --double`.
Why sys.settrace: PySnooper, snoop and hunter print every round of a loop; here it is told once, summarised.
"""
import argparse
import ast
import contextlib
import dataclasses
import importlib
import math
import os
import re
import sys
import textwrap
from collections import Counter, namedtuple

import gymnasium as gym
import numpy as np
import torch

SMALL = {"num_envs": 2, "num_steps": 2, "batch_size": 4, "learning_starts": 6, "train_frequency": 2,
         "policy_frequency": 1, "num_minibatches": 1, "discriminator_steps": 1, "discriminator_batch_size": 4}
WHOLE = 50  # arrays of more values than this are summarised
WIDTH = 150  # columns of the output
LOOPS = (ast.For, ast.While)
FLAT = str.maketrans("", "", "[]")

class UpdateSeenError(BaseException):
    """Ends `train` from within; no `except Exception` may stop it."""

def load_script(name):
    """The module of a script, from a path or a bare name, in the current folder or beside `demos`."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    names = [os.path.join(folder, name + end) for folder in (os.getcwd(), top) for end in ("", ".py")]
    path = next((path for path in names if path.endswith(".py") and os.path.isfile(path)), None)
    if path is None:
        raise ValueError(f"{name}: no such script, expected dqn.py, ppo.py, pofd.py, sac.py or one like them")
    sys.path.insert(0, os.path.dirname(path))  # for plug-in ids such as sac:... too
    try:
        module = importlib.import_module(os.path.basename(path)[:-3])
    except Exception as error:
        raise ValueError(f"{name}: cannot be imported: {error}") from None
    if not all(hasattr(module, part) for part in ("Config", "train", "evaluate", "main")):
        raise ValueError(f"{name}: not a script like dqn.py, expected Config, train, evaluate and main in it")
    return module

@contextlib.contextmanager
def silence():
    """Nothing reaches standard output and error, not even what pybullet's C code prints."""
    sys.stdout.flush()
    kept, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        yield
    finally:
        sys.stdout.flush()
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
        for number in (*kept, null):
            os.close(number)

def numbers(value, decimals=None):
    """A number, or nested lists of them, as text; floats of an array with the same number of decimals."""
    if isinstance(value, list):
        return f"[{', '.join(numbers(element, decimals) for element in value)}]"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.5g}" if decimals is None else f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return "0" if text == "-0" else text

def whole(array):
    """All values of an array as text: five digits of the largest, no more decimals for the others."""
    array = array.astype(int) if array.dtype == bool else array
    largest = np.abs(array[np.isfinite(array)]).max(initial=0)
    small = array.ndim and array.dtype.kind == "f" and 1e-6 < largest < 1e5
    return numbers(array.tolist(), 4 - math.floor(math.log10(largest)) if small else None)

Entry = namedtuple("Entry", "name kind text memory")  # kind: shape and dtype; memory: where an array lies

def describe(name, value):
    """What there is to say of a value: a list with one Entry for each array in it."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        text = whole(array) if array.size <= WHOLE else ""
        if not text:
            text = f"min {array.min():.4g}, mean {array.mean():.4g}, max {array.max():.4g}"
        return [Entry(name, f"{array.shape} {array.dtype}".replace(" float32", ""), text, array.ctypes.data)]
    if isinstance(value, (tuple, list)) and len(value) <= 8:
        names = getattr(value, "_fields", None)
        parts = [f"{name}.{names[i]}" if names else f"{name}[{i}]" for i in range(len(value))]
        return [entry for part, element in zip(parts, value) for entry in describe(part, element)]
    plain = value is None or isinstance(value, (bool, int, float, str))
    return [Entry(name, "", numbers(value), 0)] if plain else []

def heads(node):
    """The expressions of a statement without those of its body."""
    fields = {ast.For: ("target", "iter"), ast.While: ("test",), ast.If: ("test",), ast.With: ("items",)}
    parts = [getattr(node, field) for field in fields.get(type(node), ())] or [node]
    return [leaf for part in parts for top in (part if isinstance(part, list) else [part])
            for leaf in ast.walk(top)]

class Statement:
    """A statement of the script: its lines, and the expressions that it reads and binds."""
    def __init__(self, node):
        self.node, self.line, self.loop = node, node.lineno, isinstance(node, LOOPS)
        body = getattr(node, "body", None)
        self.last = body[0].lineno - 1 if body else node.end_lineno
        self.body = range(body[0].lineno, node.end_lineno + 1) if body else range(0)
        self.guard = isinstance(node, ast.If) and all(isinstance(x, ast.Raise) for x in node.body)
        nodes = heads(node)
        places = [x for x in nodes if isinstance(x, (ast.Name, ast.Attribute, ast.Subscript))]
        inner = {x.id for y in nodes if isinstance(y, ast.comprehension) for x in ast.walk(y.target)
                 if isinstance(x, ast.Name)}
        names = [(ast.unparse(x), x) for x in places]
        self.binds = [name for name, x in names if isinstance(x.ctx, ast.Store) and name not in inner]
        parts = {id(x.value) for x in places if isinstance(x, ast.Subscript)}  # of x[i]: that is read, not x
        self.reads = [name for name, x in names if isinstance(x.ctx, ast.Load) and id(x) not in parts
                      and name.split("[")[0] not in inner and name not in self.binds
                      and re.fullmatch(r"\w+(\[.*\])?|config\.\w+", name)]
        self.steps = [ast.unparse(x.func.value) for x in nodes
                      if isinstance(x, ast.Call) and getattr(x.func, "attr", "") == "step"]

class Record:
    """What one statement did when it last ran."""
    def __init__(self, statement, reads):
        self.statement, self.reads, self.binds, self.calls, self.rounds = statement, reads, [], [], 0

class Call:
    """What one call of a function did: {line: Record}."""
    def __init__(self, frame):
        self.frame, self.code, self.records, self.current, self.before = frame, frame.f_code, {}, None, {}
        optimizers = [x for x in frame.f_locals.values() if isinstance(x, torch.optim.Optimizer)]
        self.trains = bool(optimizers) or self.code.co_name == "train"

def weights(frame):
    """{name: tensor} of every parameter and buffer of the networks, and every trained tensor, in a frame."""
    found = {}
    for name, value in frame.f_locals.items():
        if isinstance(value, torch.nn.Module):
            found |= {f"{name}.{key}": tensor for key, tensor in value.state_dict(keep_vars=True).items()}
        elif type(value) is torch.Tensor and value.is_leaf and value.requires_grad:  # no network's Parameter
            found[name] = value
    return found

class Tracer:
    """Records `train` from its first loop on, until `updates` gradient steps were made."""
    def __init__(self, module, updates):
        with open(module.__file__) as file:
            self.source = file.read().splitlines()
        tree = ast.parse("\n".join(self.source))
        train = next(x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "train")
        self.loop = Statement(next(x for x in train.body if isinstance(x, LOOPS)))
        self.statements = {}  # by each of their lines; a body's statements are walked after their head's
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                statement = Statement(node)
                self.statements.update(dict.fromkeys(range(statement.line, statement.last + 1), statement))
        self.train, self.stack, self.root = module.train.__code__, [], None
        self.updates, self.made, self.optimizer = updates, 0, None
        self.places = {}  # {call: the line where the gradient step was made}, for each call then under way

    def trace(self, frame, event, _):
        """For sys.settrace: follow what `train` calls of the script in its loop, but for environments."""
        if frame.f_code.co_filename != self.train.co_filename or frame.f_code.co_name.startswith("<"):
            return None
        if not self.stack:
            if frame.f_code is not self.train:
                return None
            self.root = Call(frame)
            self.stack.append(self.root)
            return self.follow
        this = frame.f_locals.get("self")
        skipped = isinstance(this, (gym.Env, gym.vector.VectorEnv)) or dataclasses.is_dataclass(this)
        if skipped or not self.stack[-1].current:
            return None
        call = Call(frame)
        self.stack[-1].current.calls.append(call)
        self.stack.append(call)
        return self.follow

    def follow(self, frame, event, value):
        """For each line of a followed function, before it runs; and for its return."""
        call = self.stack[-1]
        statement = self.statements.get(frame.f_lineno)
        if frame is not call.frame or event == "exception" or statement is None:
            return self.follow
        if event == "return":
            self.finish(call, None)
            if call.current and isinstance(statement.node, ast.Return):
                call.current.binds = describe(f"{call.code.co_name}()", value)
            self.stack.pop()
            call.frame = None
        elif call.current is None or statement is not call.current.statement:
            self.finish(call, statement)
            followed = call is not self.root or statement.line in (self.loop.line, *self.loop.body)
            call.current = self.begin(call, statement) if followed else None
        return self.follow

    def begin(self, call, statement):
        """The record of a statement about to run; a loop's and a `with`'s stay the same in all its rounds."""
        frame, clock = call.frame, "perf_counter" in self.source[statement.line - 1]
        if call is self.root and clock and self.made >= self.updates:
            raise UpdateSeenError  # what follows only reports
        reads = [(name, self.value(name, frame)) for name in dict.fromkeys(statement.reads)
                 if re.split(r"\W", name)[0] in frame.f_locals]
        reads = [entry for name, value in reads if not isinstance(value, str)
                 for entry in describe(name, value) if entry.text]
        self.find_step(statement, frame)
        if call.trains:
            call.before = {name: (x.detach().clone(), None if x.grad is None else x.grad.clone())
                           for name, x in weights(frame).items()}
        return call.records.setdefault(statement.line, Record(statement, reads))

    def find_step(self, statement, frame):
        """Count the gradient steps of the optimizer that makes the first one."""
        for name in statement.steps:
            optimizer = self.value(name, frame)
            if isinstance(optimizer, torch.optim.Optimizer):
                self.optimizer = self.optimizer or optimizer
                self.made += optimizer is self.optimizer
                self.places = {call: call.current.statement.line for call in self.stack[:-1]}
                self.places[self.stack[-1]] = statement.line

    def finish(self, call, following):
        """Note what the current statement of a call has bound and changed, now that `following` is to run."""
        record = call.current
        if record is None:
            return
        body, again = record.statement.body, following is not None and following.line in record.statement.body
        if record.statement.loop:
            if not again:
                return  # the loop is over: keep its last round
            if self.places.get(call) in body and record.rounds and self.made >= self.updates:
                raise UpdateSeenError
            call.records = {line: kept for line, kept in call.records.items() if line not in body}
            record.rounds += 1
        taken_apart = following and isinstance(getattr(following.node, "targets", [0])[0], ast.Tuple)
        parts = following.reads if taken_apart else ()
        entries = [(name, self.value(name, call.frame)) for name in record.statement.binds if name != "_"]
        if any(isinstance(value, tuple) and name in parts for name, value in entries):
            entries = []  # the next line's names say it better
            record.reads = [entry for entry in record.reads if not entry.kind]
        record.binds = [entry for name, value in entries for entry in describe(name, value)]
        if call.trains and not any(inner.trains for inner in record.calls):
            record.binds += self.changes(call)

    @staticmethod
    def value(expression, frame):
        """A name, or the like, evaluated where it was used; None if that can't be."""
        try:
            return eval(expression, frame.f_globals, frame.f_locals)
        except Exception:
            return None

    @staticmethod
    def changes(call):
        """Norms of new gradients and of the weights' changes since the statement began, by network."""
        squares, entries = {}, {}
        for name, tensor in weights(call.frame).items():
            old, old_grad = call.before.get(name, (tensor, tensor.grad))
            root, *layer = name.split(".")
            layer = ".".join(layer[:-1] or layer)  # a layer's weight and bias in one number
            if tensor.grad is not None and old_grad is not None and not torch.equal(tensor.grad, old_grad):
                factor = tensor.grad.norm() / old_grad.norm()
                entries[root] = Entry(f"gradients of {root}", "", f"{factor:.4g} times what they were", 0)
            elif tensor.grad is not None and old_grad is None:
                norms = squares.setdefault(f"gradient norms of {root}", Counter())
                norms[layer] += tensor.grad.square().sum().item()
            if not torch.equal(tensor, old):
                norms = squares.setdefault(f"norms of the change of {root}", Counter())
                norms[layer] += (tensor.detach() - old).square().sum().item()
        norms = {name: ", ".join(f"{key}: {value**0.5:.4g}".lstrip(": ") for key, value in layers.items())
                 for name, layers in squares.items()}
        return [*entries.values(), *(Entry(name, "", text, 0) for name, text in norms.items())]

class Printer:
    """Turns records into text; each function's body is shown at its first call, each value once."""
    def __init__(self, source):
        self.source, self.lines, self.shown, self.seen = source, [], {}, set()

    def show_call(self, call, indent, wanted):
        """The lines of a call; `wanted`: the values that the calling statement prints anyway."""
        self.seen.add(call.code)
        source = self.source[min(call.records) - 1]
        shift = indent - (len(source) - len(source.lstrip()))
        for _, record in sorted(call.records.items()):
            if not record.statement.guard:
                self.show_statement(record, shift, wanted)

    def show_statement(self, record, shift, wanted):
        """Source, what it read and nobody saw yet, the functions it called, what it bound."""
        statement, returns = record.statement, isinstance(record.statement.node, ast.Return)
        lines = self.source[statement.line - 1:statement.last]
        indent = len(lines[0]) - len(lines[0].lstrip()) + shift
        for number, line in enumerate(lines, statement.line):
            self.lines.append(f"{number:4} {' ' * shift}{line[max(0, -shift):]}")
        values = {entry.text for entry in record.binds}
        texts = [f"< {record.rounds} round{'s' * (record.rounds > 1)}"] if statement.loop else []
        reads = [entry for entry in record.reads if self.is_news(entry, {*values, *wanted})]
        texts += self.texts(reads, "< ")
        for call in record.calls:
            if call.code in self.seen:
                texts += self.texts([entry for entry in self.result(call)
                                     if entry.text not in values and not self.same(entry)], "> ")
            else:
                self.add([*texts, f"in {call.code.co_name}:"], indent + 6)
                texts = []
                self.show_call(call, indent + 4, values)
        texts += self.texts([entry for entry in record.binds if not (returns and entry.text in wanted)], "> ")
        self.add(texts, indent + 6)

    def result(self, call):
        """What a call returned."""
        last = call.records[max(call.records)]
        return last.binds if isinstance(last.statement.node, ast.Return) else []

    def is_news(self, entry, coming):
        """Whether a value that was read needs printing: nobody saw it, nor is it part of what was seen."""
        root = entry.name.split("[")[0]
        if getattr(self.shown.get(f"config.{entry.name}"), "text", None) == entry.text:
            return False
        if root != entry.name and root in self.shown:
            self.shown[entry.name] = entry  # others may turn out to be the same
            return False
        return entry.text not in coming and getattr(self.shown.get(entry.name), "text", None) != entry.text

    def same(self, entry):
        """The name under which a long value was shown already; integers may be equal by chance."""
        found = [name for name, other in self.shown.items()
                 if other.text.translate(FLAT) == entry.text.translate(FLAT) and len(entry.text) > 24
                 and ("." in entry.text or other.memory == entry.memory)]
        found.sort(key=lambda name: (self.shown[name].memory == entry.memory, "(" not in name))
        return found[-1] if found else None

    def texts(self, entries, mark):
        """Each value as text; a long one that was shown already by its name."""
        texts = []
        for entry in entries:
            label = f"{entry.name}: {entry.kind}" if entry.kind else entry.name
            text = self.same(entry) or entry.text
            texts.append(mark + (f"{label} = {text}" if entry.name and text else label or text))
            self.shown.pop(entry.name, None)
            self.shown[entry.name] = entry
        return texts

    def add(self, texts, margin):
        """Put texts beside the source if all fit, else under it, side by side if they fit, or wrapped."""
        beside = "   ".join([self.lines[-1], *texts])
        if texts and len(beside) <= WIDTH and re.match(r" *\d+ ", beside):
            self.lines[-1] = beside
            return
        room = 0  # on the last line
        for text in texts:
            if len(text) + 3 <= room:
                self.lines[-1] += "   " + text
            else:
                self.lines += textwrap.wrap(text, WIDTH, initial_indent=" " * margin, break_long_words=False,
                                            subsequent_indent=" " * (margin + 2), break_on_hyphens=False)
            room = WIDTH - len(self.lines[-1])

def trace_update(module, updates, flags):
    """Run the script's `main`, which checks its flags, until the update is seen: (config, Tracer)."""
    train, seen, tracer = module.train, [], Tracer(module, updates)

    def traced_train(config, *args, **kwargs):
        seen.append(config)
        kwargs["report"] = lambda row: None
        kept = sys.gettrace()
        with silence():
            sys.settrace(tracer.trace)
            try:
                train(config, *args, **kwargs)
            finally:
                sys.settrace(kept)
        raise UpdateSeenError

    fields = {field.name for field in dataclasses.fields(module.Config)}
    small = {**SMALL, "update_epochs": updates}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in small.items() if name in fields]
    module.train = traced_train
    try:
        module.main(argv + flags)
    except UpdateSeenError:
        pass
    finally:
        module.train = train
    if not seen or tracer.made < updates:
        raise ValueError(f"{' '.join(flags)}: no {updates} updates happen with these flags")
    return seen[0], tracer

def main(argv=None):
    parser = argparse.ArgumentParser("trace.py", argparse.SUPPRESS, __doc__.splitlines()[0],
                                     "Other flags are the script's: --gamma 0.9", allow_abbrev=False)
    parser.add_argument("script", help="dqn.py, ppo.py, pofd.py, sac.py or one like them")
    parser.add_argument("--updates", type=int, default=1, help="show the path to this update (default: 1)")
    flags, others = parser.parse_known_args(argv)
    try:
        if flags.updates < 1:
            raise ValueError(f"--updates is {flags.updates}, expected 1 or more")
        with silence():
            module = load_script(flags.script)
        config, tracer = trace_update(module, flags.updates, others)
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])
    printer = Printer(tracer.source)
    printer.show_call(tracer.root, 0, set())
    changed = [f"{key} {value}" for key, value in vars(config).items()
               if key != "env_id" and value != getattr(module.Config, key)]
    script = os.path.basename(module.__file__)
    print(f"{script} {config.env_id}, update {flags.updates}, with {', '.join(changed)}")
    print("< read, > bound or changed: shape, dtype unless float32, values (of large arrays: min, mean, max)")
    print("a loop is shown in its last round, a function at its first call, a value once")
    print("\n".join(printer.lines))

if __name__ == "__main__":
    main()
