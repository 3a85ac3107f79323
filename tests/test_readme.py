"""README.md: what it says to type runs, with little training. Its first two commands are run by .ci/run."""
import re
import runpy
import shlex
import shutil
import sys

import pytest

from tiny import TOP

README = (TOP / "README.md").read_text()
TINY = "--total-timesteps 64 --num-envs 4 --hidden-size 8".split()
COMMANDS = re.findall(r"(?<=[\n`])python ((?!tests/)[^`#\n]+)", README)  # also those within a sentence
assert len(COMMANDS) > 7


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, but for what the README supposes there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(re.search("```python\n(import gymnasium.*?)```", README, re.DOTALL)[1])
    shutil.copy(TOP / "demos/InvertedPendulumPyBulletSparseEnv-v0.npz", "yours.npz")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, monkeypatch, capsys):
    if "sac.py" in command or "pofd.py" in command or "PyBullet" in command:
        pytest.importorskip("pybullet")
    if "--check" in command:
        test_command_runs("demos/exercise.py ppo.py", monkeypatch, capsys)
    program, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [program, *words, *([] if "exercise" in program else TINY)])
    try:
        runpy.run_path(str(TOP / program), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code or "--check" in command and capsys.readouterr().out.count("not yet") == 4
    assert "demos/" in program or " over " in capsys.readouterr().out


def test_example_in_python_runs():
    example = re.search("```python\n(import ppo.*?)```", README, re.DOTALL)[1]
    assert "20_480" in example
    names = {}
    exec(example.replace("20_480", "64"), names)
    assert names["rows"] and names["returns"].shape == (20,) and names["action"].shape == (1,)
