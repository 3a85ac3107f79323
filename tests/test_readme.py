"""README.md: its commands and blocks run as they stand there, with little training."""
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from tiny import TOP

README = (TOP / "README.md").read_text(encoding="utf-8")
TINY = "--total-timesteps 64 --num-envs 4 --hidden-size 8".split()
COMMANDS = re.findall(r"(?<=[\n`])python ((?:demos/)?\w+\.py [^`#\n]+)", README)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MINE, LOAD, SEEDS = BLOCKS
SAVE, = (command for command in COMMANDS if "--save" in command)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, but for the reader's own environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, monkeypatch, capsys):
    if any(word in command for word in ("sac.py", "pofd.py", "PyBullet")):
        pytest.importorskip("pybullet")
    if "--check" in command:
        test_command_runs("demos/exercise.py ppo.py", monkeypatch, capsys)
    program, *words = shlex.split(command)
    tiny = [] if "exercise" in program or "--help" in words else TINY
    monkeypatch.setattr(sys, "argv", [program, *words, *tiny])
    try:
        runpy.run_path(str(TOP / program), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code or "--check" in command
    assert "error" not in capsys.readouterr().err
    if command == SAVE:  # the block below it loads what it wrote
        names = {}
        exec(LOAD, names)
        assert names["env"].action_space.contains(names["action"])


def test_several_seeds_are_plotted(tmp_path):
    (tmp_path / "seeds.py").write_text(SEEDS.replace("8_192", "1_024"), encoding="utf-8")
    subprocess.run([sys.executable, "seeds.py"], env={"PYTHONPATH": str(TOP)}, check=True)
    assert (tmp_path / "returns.png").exists()
