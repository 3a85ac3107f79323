"""demos/: exercises that check themselves, one update line by line, pictures, curves, demonstrations."""
import csv
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from demos import exercise, record, trace, watch
from PIL import Image, ImageSequence
from torch.nn.functional import smooth_l1_loss

TOP = Path(__file__).parent.parent
SCRIPTS = ("dqn", "ppo", "pofd", "sac")
CAR = TOP / "demos" / "MountainCarContinuous-v0.npz"
TINY = "--total-timesteps 64 --num-envs 4 --num-steps 8 --hidden-size 8".split()


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs a program in an empty folder: its exit status or its error, and its output."""
    monkeypatch.chdir(tmp_path)

    def run(program, *argv):
        try:
            status = program.main([str(word) for word in argv])
        except (SystemExit, ValueError) as error:
            status = error.args[0]
        return status or 0, "".join(capsys.readouterr())
    return run


def fill(script, *edits, blank=()):
    """Write exercise_SCRIPT.py with the original's lines, changed by `edits`, in all parts not `blank`."""
    original = exercise.load_original(script)
    text, lines = exercise.make_file(original), original.source.splitlines()
    for i, part in enumerate(exercise.EXERCISES[script], 1):
        if part["name"] not in blank:
            first, last = exercise.find_blank(original.source, part)
            code = "\n".join(lines[first - 1:last]).lstrip()
            text = text.replace(f'raise NotImplementedError("exercise {i}")', code)
    for old, new in edits:
        assert old in text, f"{script}.py has no `{old}` any more"
        text = text.replace(old, new)
    Path(f"exercise_{script}.py").write_text(text)
    return f"exercise_{script}.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_exercises_begin_blank_and_the_original_solves_them(script, run):
    path, parts = Path(f"exercise_{script}.py"), exercise.EXERCISES[script]
    assert run(exercise, f"{script}.py")[0] == 0
    status, output = run(exercise, "--check", path)
    assert status == 1 and output.count(" not yet\n") == output.count("\n") == len(parts)
    assert "exists already" in run(exercise, fill(script).removeprefix("exercise_"))[1]
    code = [re.sub("(?m)^ *#.*\n", "", x) for x in (path.read_text(), exercise.load_original(script).source)]
    assert code[0] == code[1]
    status, output = run(exercise, "--check", path)
    assert status == 0 and output.count(" right\n") == len(parts)
    assert f'PYTHONPATH="{TOP}" python exercise_{script}.py' in output.splitlines()[-1]


def test_parts_are_checked_one_by_one_and_the_extra_one_is_not_needed(run):
    path = Path(fill("ppo", blank=("Gaussian policy", "make_batch")))
    status, output = run(exercise, "--check", path)
    assert status == 1 and re.findall("right|not yet", output) == ["not yet", "right", "not yet", "right"]
    path.write_text(path.read_text().replace("# END OF EXERCISE 2", ""))
    assert "wrong: expected the lines `# EXERCISE 2` and `# END" in run(exercise, "--check", path)[1]
    path.write_text("print(\n")
    assert re.search("line 1\n.*\n.*\nSyntaxError: '\\(' was", run(exercise, "--check", path)[0])
    edits = ("import argparse", "import argparse\nONE = 1"), ("config.tau)", "ONE * config.tau)")  # own names
    status, output = run(exercise, "--check", fill("dqn", *edits, blank=["Double DQN (extra)"]))
    assert status == 0 and output.split("\n")[1].endswith("not yet") and output.count(" right\n") == 3


@pytest.mark.parametrize("script, i, right, wrong, case, said", [
    (script, i, *wrong) for script, parts in exercise.EXERCISES.items()
    for i, part in enumerate(parts, 1) for wrong in part.get("wrong answers", ())])
def test_a_typical_wrong_answer_is_told_with_its_case(script, i, right, wrong, case, said, run):
    path = fill(script, (right, wrong))
    status, output = run(exercise, "--check", path)
    assert status == 1 and output.count("wrong: ") == 1
    lines = re.search(rf"^{i}  .*wrong: {case}.*((?:\n   .*)*)", output, re.M)[1]
    assert said in lines and re.search(r"\n +[\w.()]+( \(.*\))? = ", lines), "the inputs are told"
    for number, line in re.findall(r"\n +line (\d+): (.*)", lines):
        assert Path(path).read_text().splitlines()[int(number) - 1].strip() == line


@pytest.fixture(scope="module", params=SCRIPTS)
def traced(request, tmp_path_factory):
    """A script, the page that trace.py makes of it, and the rows in it."""
    if request.param in ("pofd", "sac"):
        pytest.importorskip("pybullet")
    path = tmp_path_factory.mktemp("trace") / "page.html"
    trace.main([f"{request.param}.py", "--html", str(path)])
    data = re.search(r'<script type="application/json">(.*?)</script>', path.read_text())[1]
    return request.param, path, json.loads(data)["rows"]


def test_page_and_text_hold_each_line_once_and_every_line_of_a_loss(traced, run):
    script, _, rows = traced
    source, text = (TOP / f"{script}.py").read_text(), " ".join(run(trace, f"{script}.py")[1].split())
    numbers, place = [row["number"] for row in rows if row["kind"] == "line"], 0
    assert len(numbers) > 20 and len(set(numbers)) == len(numbers)
    for name in re.findall(r"def (\w+_loss|clipped_surrogate|imitation_reward)\(", source):
        first, last = exercise.find_blank(source, {"part": name})
        assert set(range(first, last + 1)) <= set(numbers)
    for step in "# Act", "envs.step(", "# Learn", "loss", ".backward(", "optimizer.step()":
        place = text.index(step, place)
    for row in rows:
        notes = [f"{x['name']} {x['shape']} = {x['text']}" for x in row["notes"]]
        assert all(" ".join(words.split()) in text for words in (row["text"], *notes))


def test_the_losses_can_be_checked_by_hand(traced):
    script, _, rows = traced
    notes = [(note["name"], np.squeeze(note["array"])) for row in rows for note in row["notes"]]
    x = dict(notes[:max(i for i, (name, _) in enumerate(notes) if name == "loss") + 1])
    if script == "dqn":
        target = x["batch.reward"] + x["config.gamma"] * (1 - x["batch.terminated"]) * x["next_value"]
        loss = smooth_l1_loss(*map(torch.as_tensor, (x["q_value"], target)))
    elif script == "sac":
        loss = ((x["forward()"] - x["target"]) ** 2).mean(1).sum()
    else:
        loss = 0.5 * ((x["value"] - x["target"]) ** 2).mean() - x["config.ent_coef"] * x["entropy"]
        loss -= (x["ratio"] * x["advantage"]).mean()
    assert loss == pytest.approx(x["loss"], rel=1e-3) and dict(notes)["norm of agent's change"] > 0


def test_being_watched_changes_nothing(run):
    module, rows, flags = record.load_script(TOP / "dqn.py"), [], ["--seed", "3", "--total-timesteps", "6"]
    module.main(record.make_config(module, flags, **trace.SMALL), rows.append)
    output = run(trace, "dqn.py", *flags, "--update", "3")[1]
    assert "total_timesteps = 6" in output and "> step = 6" in output
    assert float(re.search("> loss = (.*)", output)[1]) == pytest.approx(float(rows[0].split()[5]), abs=1e-4)
    assert run(trace, "dqn.py", *flags, "--update", "4")[1].endswith("error: training ends before update 4\n")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_page_in_a_browser(traced, tmp_path):
    _, path, rows = traced
    width = "<script>document.title = document.documentElement.scrollWidth</script></html>"
    (tmp_path / "page.html").write_text(path.read_text().replace("</html>", width))
    command = "chromium --headless --no-sandbox --disable-gpu --disable-sync --dump-dom --window-size=390,800"
    command = [*command.split(), f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"]
    dom = subprocess.run(command, capture_output=True, text=True).stdout
    assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= 500, "it fits a phone; no window is narrower"
    body = html.unescape(re.sub(r"<[^>]*>|\s", "", dom[dom.index("<main>"):]))
    for words in [x["text"].removeprefix("    # ") for row in rows for x in (row, *row["notes"])]:
        assert re.sub(r"\s", "", words) in body
    assert 'id="act"' in dom and 'href="#learn"' in dom


@pytest.mark.parametrize("script, env_id", zip(SCRIPTS, ["CartPole-v1", *["MountainCarContinuous-v0"] * 3]))
def test_a_saved_agent_is_loaded_whole(script, env_id, tmp_path):
    module, path = record.load_script(TOP / f"{script}.py"), tmp_path / "agent.pt"
    module.evaluate = lambda *args: np.zeros(2)
    agent = module.main(module.Config(env_id, total_timesteps=8, save=str(path)), report=lambda row: None)
    loaded, config = record.load_agent(module, path)
    same = [all((x == y).all() for x, y in zip(agent.parameters(), other.parameters()))
            for other in (loaded, record.make_agent(module, config))]
    assert config.env_id == env_id and same == [True, False]


def test_rows_and_curves_of_several_seeds(run):
    flags = "--eval-frequency 32 --seeds 1 2 --rows x.csv --curves x.png".split()
    words = [line.split() for line in run(watch, "ppo.py", *TINY, *flags)[1].splitlines()]
    rows = list(csv.DictReader(Path("x.csv").read_text().splitlines()))
    assert [row.pop("seed") for row in rows] == ["1", "1", "2", "2"]
    assert rows == [dict(zip(line[::2], line[1::2])) for line in words if line[0] == "step"]
    assert Image.open("x.png").convert("RGB").getcolors(20) is None  # more than 20 colors


def test_agents_side_by_side_in_a_gif(run):
    run(watch, "ppo.py", *TINY, "--save", "agent.pt", "--rows", "x.csv")
    output = run(watch, "ppo.py", "--load", "agent.pt", "--untrained", "--gif", "x.gif")[1]
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open("x.gif"))]
    assert frames[0].shape[1] == 2 * 320 and (frames[0] != frames[1]).any() and os.path.getsize("x.gif") < 3e5
    assert len(re.findall(r"(?:untrained|agent.pt): return (\d+) after \1 steps", output)) == 2


def test_the_teacher_is_drawn_in_its_recorded_states():
    pybullet = pytest.importorskip("pybullet")
    path = TOP / "demos" / "InvertedDoublePendulumPyBulletSparseEnv-v0.npz"
    env = gym.make("demos.pendulums:InvertedDoublePendulumPyBulletSparseEnv-v0", render_mode="rgb_array")
    body, world, data = env.unwrapped.envs.bodies[0], env.unwrapped.envs.world, np.load(path)
    tips = [pybullet.getLinkState(body, 5, **world)[0][0] for _ in watch.recorded(env, path)]
    x = data["observations"][:len(tips) - 1, 2]  # of pole 2, from which nothing is placed
    assert data["timeouts"][len(x) - 1] and np.abs(tips[:-1] - x).max() < 0.05 < x.std()


def test_recording_makes_what_the_folder_holds_and_the_same_bits_again(run):
    run(watch, "ppo.py", *TINY, "--save", "agent.pt", "--rows", "x.csv")
    assert "car.npz: 5 episodes of MountainCarContinuous-v0," in run(record, "swing", "-o", "car.npz")[1]
    made, shipped = np.load("car.npz"), np.load(CAR)
    assert all((made[key] == x).all() and made[key].dtype == x.dtype for key, x in shipped.items())
    for name in "a.npz", "b.npz":
        run(record, "ppo.py", "--load", "agent.pt", "--epsilon", "0.2", "--episodes", "3", "-o", name)
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes() and not list(Path().glob("*.tmp"))
    data = np.load("a.npz")
    assert (data["terminals"] | data["timeouts"]).sum() == 3 and set(data["actions"]) == {0, 1}


@pytest.mark.parametrize("program, words, sentence", [
    (exercise, "nosuch.py", "nosuch.py: no such script, expected dqn.py, ppo.py, pofd.py or sac.py"),
    (exercise, "--check ppo.py", "with --check a file like exercise_dqn.py"),
    (watch, "ppo.py", "expected --gif, --curves or --rows"),
    (watch, "ppo.py --load x.pt --rows x.csv", "with --load only --gif, --untrained and --demo"),
    (watch, "ppo.py --curves no/x.png", "x.png: there is no such folder"),
    (watch, f"ppo.py --gif x.gif --demo {CAR}", "observations (2,), expected (4,)"),
    (record, "ppo.py -o x.npz", "expected --load and what the script's --save wrote")])
def test_wrong_input_ends_with_a_sentence(program, words, sentence, run):
    status, output = run(program, *words.split())
    assert sentence in (output or status).splitlines()[-1] and not os.listdir()
