"""Do the fast tests see a wrong sign? `python tests/mutation.py sac.py --sample 120` lets mutmut change a
script in one small place after another, runs its tests on each, and names the mutants that no test kills.

Wants `pip install mutmut==3.8.1`. Not mutated: decorators, properties, class bodies outside methods. Left
out: learning tests, tests that read the source or start the script by name (mutmut mutates imported modules
only), and the one that changes the number of threads, after which forked processes hang.
"""

import argparse
import ast
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SCRIPTS = ["dqn.py", "ppo.py", "pofd.py", "sac.py"]
CONTEXTS = ("torch.inference_mode()", "torch.no_grad()")
LEFT_OUT = "not layout and not same_bits and not threads and not record"
OUTCOMES = {0: "survived"} | dict.fromkeys((1, 3, -9, -11), "killed") | dict.fromkeys((5, 33), "not tested")
OUTCOMES |= dict.fromkeys((-24, 24, 36, 152, 255), "timeout")  # by the exit status that mutmut notes


def undecorated(source):
    """mutmut passes over decorated functions: `with torch.no_grad():` around the body instead."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in [x for x in node.decorator_list if ast.unparse(x) in CONTEXTS]:
                node.decorator_list.remove(decorator)
                start = int(ast.get_docstring(node) is not None)
                node.body[start:] = [ast.With([ast.withitem(decorator)], node.body[start:])]
    return ast.unparse(ast.fix_missing_locations(tree))


def prepare(folder, script):
    """A copy of the project in `folder`, set up for mutmut. ValueError if there is no such script."""
    if script not in SCRIPTS:
        raise ValueError(f"{script}: no such script, expected one of {', '.join(SCRIPTS)}")
    name = script.removesuffix(".py")
    for part in [*SCRIPTS, "demos", "tests", "requirements.txt", "README.md"]:
        copy = shutil.copytree if (TOP / part).is_dir() else shutil.copy
        copy(TOP / part, folder / part)
    (folder / script).write_text(undecorated((TOP / script).read_text()))
    tests = [f"tests/test_{name}.py", "tests/test_common.py", "tests/test_crash.py"]
    chosen = name
    if name in ("pofd", "sac"):
        tests.append("tests/test_pendulums.py")
        chosen += f" or (test_pendulums and not {'sac' if name == 'pofd' else 'pofd'})"
    others = [x for x in SCRIPTS if x != script] + ["demos", "tests", "requirements.txt", "README.md"]
    (folder / "pyproject.toml").write_text(f"""[tool.mutmut]
source_paths = {json.dumps([script])}
also_copy = {json.dumps(others)}
pytest_add_cli_args_test_selection = {json.dumps(tests)}
pytest_add_cli_args = {json.dumps(["-n", "0", "-m", "not learning", "-k", f"({chosen}) and {LEFT_OUT}"])}
timeout_multiplier = 1.5
timeout_constant = 10.0
""")


def mutmut(folder, *arguments, **how):
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=folder, env=environ, **how)


def exit_codes(folder, script):
    """{mutant: exit status of its tests, or None}."""
    return json.loads((folder / "mutants" / f"{script}.meta").read_text())["exit_code_by_key"]


def main(argv=None):
    parser = argparse.ArgumentParser("mutation.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("script", help=", ".join(SCRIPTS))
    parser.add_argument("--sample", type=int, default=0, help="mutants to try, at random; 0: all of them")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--processes", type=int, default=2)
    config = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, script = Path(name), config.script
        try:
            prepare(folder, script)
        except ValueError as error:
            parser.error(str(error))
        quiet = {"capture_output": True, "text": True}
        first = mutmut(folder, "run", "--max-children", "1", f"{script[:-3]}.x_main__mutmut_1", **quiet)
        if not (folder / "mutants" / f"{script}.meta").exists():
            parser.exit(1, f"mutation.py: error: mutmut: {(first.stdout + first.stderr)[-300:]}\n")
        mutants = sorted(exit_codes(folder, script))
        size = min(config.sample or len(mutants), len(mutants))
        names = sorted(random.Random(config.seed).sample(mutants, size))
        mutmut(folder, "run", "--max-children", str(config.processes), *names, **quiet)
        codes = exit_codes(folder, script)
        outcomes = {name: OUTCOMES.get(codes[name], f"status {codes[name]}") for name in names}
        for name in [name for name in names if outcomes[name] not in ("killed", "timeout")]:
            print(mutmut(folder, "show", name, **quiet).stdout)
        count = collections.Counter(outcomes.values())
        figures = ", ".join(f"{number} {what}" for what, number in count.most_common())
        print(f"{script}: {len(mutants)} mutants, {size} tried with seed {config.seed}: {figures}")


if __name__ == "__main__":
    main()
