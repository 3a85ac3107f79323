"""demos/watch.py: pictures of the agent that was asked for, and one line for wrong input."""

import importlib.util
import itertools
import os
import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

TOP = Path(__file__).parent.parent
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
spec = importlib.util.spec_from_file_location("demo_watch", TOP / "demos" / "watch.py")
watch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watch)
DEMO = TOP / "demos" / "InvertedDoublePendulumPyBulletSparseEnv-v0.npz"
TINY = ["--total-timesteps", "64", "--num-envs", "4", "--hidden-size", "8"]
Image = pytest.importorskip("PIL.Image", reason="pillow draws the frames")
needs_pygame = pytest.mark.skipif(not importlib.util.find_spec("pygame"), reason="pygame-ce draws CartPole")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What `ppo.py --save` wrote."""
    path = tmp_path_factory.mktemp("watch") / "agent.pt"
    watch.load_script("ppo").main([*TINY, "--num-steps", "8", "--save", str(path)])
    return path


def pictures(path):
    """Every frame of a GIF (frames, height, width, 3)."""
    with Image.open(path) as gif:
        frames = []
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")))
        return np.array(frames)


@needs_pygame
def test_before_and_after_side_by_side(checkpoint, tmp_path, capsys):
    path = tmp_path / "x.gif"
    watch.main(["ppo", "--load", str(checkpoint), "--untrained", "--gif", str(path), "--stride", "2"])
    lines = capsys.readouterr().out.splitlines()
    frames = pictures(path)
    assert frames.shape[2] == 2 * 320 and 3 <= len(frames) < 200 and path.stat().st_size < 1e6
    text, scene = frames[:, : watch.HEIGHT], frames[:, watch.HEIGHT :]
    assert (text.min((1, 2, 3)) < 60).all(), "black text on white"
    assert (text[0] != text[1]).any() and (scene[0] != scene[1]).any()
    pole = np.abs(scene[0].astype(int) - (202, 152, 101)).sum(-1) < 60
    rows, columns = np.nonzero(pole[:, :320])
    assert np.ptp(rows) > 3 * np.ptp(columns) > 0, "the pole stands at first"
    assert lines[0].startswith(f"{path}: {len(frames)} frames") and len(lines) == 3
    assert lines[1].startswith("ppo.py, untrained: return ") and lines[2].startswith(
        "ppo.py, 64 steps: return "
    )


@needs_pygame
def test_the_return_is_that_of_the_agent(checkpoint, tmp_path, capsys):
    watch.main(["ppo", "--load", str(checkpoint), "--gif", str(tmp_path / "x.gif"), "--seed", "3"])
    printed = re.search(r"return (\d+) after (\d+) steps$", capsys.readouterr().out)
    agents, _ = watch.get_agents(watch.load_script("ppo"), [str(checkpoint)], False, [], print)
    agent = agents[0][1]
    env, total, over = gym.make("CartPole-v1"), 0, False
    obs, _ = env.reset(seed=20_003)
    while not over:
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs[None])[0])
        total, over = total + reward, terminated or truncated
    assert int(printed[1]) == int(printed[2]) == total


def test_a_look_whether_it_is_solved_does_not_end_training():
    flags = ["--env-id", "MountainCarContinuous-v0", "--total-timesteps", "256", "--eval-frequency", "64"]
    flags += ["--num-envs", "4", "--num-steps", "16", "--eval-episodes", "2"]
    agents, env_id = watch.get_agents(watch.load_script("pofd"), [], False, flags, print)
    assert env_id == "MountainCarContinuous-v0"
    assert [(title, agent.steps) for title, agent in agents] == [("pofd.py, 256 steps", 256)]


@needs_pygame
def test_trains_first_and_shows_a_window(capsys, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    watch.main(["dqn", *TINY, "--window", "--seconds", "0.2", "--fps", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("dqn.py, 64 steps: return ") and lines[-2].startswith("step ")


@needs_pygame
def test_without_a_screen_it_says_so_before_training(capsys, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", ":12345")
    with pytest.raises(SystemExit) as exit_:
        watch.main(["dqn", *TINY, "--window"])
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and captured.out == ""
    assert captured.err.startswith("watch.py: error: --window needs a screen: ")


def test_pendulum_beside_its_teacher(tmp_path, capsys):
    pytest.importorskip("pybullet")
    path = tmp_path / "x.gif"
    flags = [*TINY, "--learning-starts", "64", "--demo", str(DEMO), "--seconds", "0.5", "--fps", "10"]
    watch.main(["sac", *flags, "--gif", str(path)])
    lines = capsys.readouterr().out.splitlines()
    frames = pictures(path)[:, watch.HEIGHT :]
    assert frames.shape[2] == 2 * 320 and len(frames) > 3 and path.stat().st_size < 1e6
    for left in (0, 320):
        colored = np.ptp(frames[0, :, left + 2 : left + 320].astype(int), -1) > 60
        rows, columns = np.nonzero(colored)
        assert np.ptp(rows) > 2 * np.ptp(columns) > 0, "two poles, upright at first"
    total = np.load(DEMO)["rewards"][:30].sum()
    assert lines[-1] == f"teacher, as recorded: return {total:g} after 30 steps, cut there"


def test_the_teacher_is_put_into_the_recorded_states():
    pybullet = pytest.importorskip("pybullet")
    watch.load_script("sac")
    observations, before = np.load(DEMO)["observations"], watch.bullet_clients()
    teacher = watch.replay(str(DEMO), "InvertedDoublePendulumPyBulletSparseEnv-v0", 1)
    tips = []
    for _ in itertools.takewhile(lambda scene: not scene[-1], teacher):
        (client,) = (i for i in watch.bullet_clients() if i not in before)
        body = pybullet.getBodyUniqueId(0, physicsClientId=client)
        tips.append(pybullet.getLinkState(body, 5, physicsClientId=client)[0][0])
    recorded = observations[: len(tips), 2]  # the x of pole 2, which place() doesn't use; up to a step old
    assert len(tips) > 20 and np.abs(tips - recorded).max() < 0.05 < recorded.std()


@needs_pygame
@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["nosuch.py", "--gif", "x.gif"], "nosuch.py: no such script"),
        (["tests/probes.py", "--gif", "x.gif"], "not a script like dqn.py"),
        (["ppo", "--load", "nosuch.pt", "--gif", "x.gif"], "nosuch.pt: no checkpoint of ppo.py"),
        (["dqn", "--load", "AGENT", "--gif", "x.gif"], "no checkpoint of dqn.py"),
        (["ppo", "--load", "AGENT", "--gif", "no/such/x.gif"], "no/such/x.gif: cannot be written"),
        (["ppo", "--load", "AGENT", "--gif", "."], "cannot be written"),
        (["ppo", "--load", "AGENT", "--gif", "x.png"], "x.png: expected a name that ends in .gif"),
        (["ppo", "--load", "AGENT"], "one of the arguments --gif --window is required"),
        (["ppo", "--load", "AGENT", "--gif", "x.gif", "--fps", "0"], "--fps is 0.0, expected 1 to 100"),
        (["ppo", "--load", "AGENT", "--gif", "x.gif", "--gamma", "2"], "gamma is 2.0"),
        (["ppo", "--gif", "x.gif", "--demo", "nosuch.npz"], "nosuch.npz: expected an .npz"),
        (["ppo", "--gif", "x.gif", "--demo", str(DEMO)], "9 numbers an observation, CartPole-v1 has 4"),
        (["ppo", "--gif", "x.gif", "--env-id", "probes:Constant-v0"], "draws no rgb_array"),
    ],
)
def test_wrong_input_gets_one_line_and_status_2(argv, complaint, checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(TOP if "tests/probes.py" in argv else tmp_path)
    argv = [str(checkpoint) if word == "AGENT" else word for word in argv]
    with pytest.raises(SystemExit) as status:
        watch.main(argv)
    output = capsys.readouterr()
    assert status.value.code == 2 and not output.out and not os.path.exists("x.gif")
    assert re.fullmatch(r"\w+\.py: error: .+\n", output.err) and complaint in output.err


@needs_pygame
@pytest.mark.parametrize("missing, install", [("PIL", "pillow"), ("pygame", "pygame-ce")])
def test_says_what_to_install(missing, install, checkpoint, capsys, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as status:
        watch.main(["ppo", "--load", str(checkpoint), "--gif", str(tmp_path / "x.gif")])
    output = capsys.readouterr()
    assert status.value.code == 2 and re.fullmatch(r"watch\.py: error: .+\n", output.err)
    assert f"pip install {install}" in output.err
