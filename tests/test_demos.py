"""demos/watch.py shows what happened, demos/record.py writes down what was played."""
import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from demos import record, watch
from PIL import Image, ImageSequence

from tiny import KINDS, TOP, weights

TINY = "--total-timesteps 64 --eval-frequency 32 --eval-episodes 2 --num-steps 8 --update-epochs 1"
SWING_UP = TOP / "demos" / "InvertedPendulumSwingupPyBulletSparseEnv-v0.npz"
PROBE = "--env-id probes:ByActions-v0 --num-envs 4"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save_agent(script, env_id, path):
    module = record.load_script(TOP / f"{script}.py")
    config = module.Config(env_id=env_id, hidden_size=8)
    agent = record.make_agent(module, config)
    torch.save({"config": vars(config), "weights": agent.state_dict()}, path)
    return module, config, agent


def zeros(obs):
    return np.zeros(len(obs), int)


@pytest.mark.parametrize("script, kind", KINDS.items())
def test_an_agent_is_loaded_without_training_and_without_demonstrations(script, kind):
    module, config, agent = save_agent(script, f"probes:ByActions{kind}-v0", "agent.pt")
    module.main = module.load_demonstrations = None
    loaded, loaded_config = record.load_agent(module, "agent.pt")
    assert weights(loaded) == weights(agent) and loaded_config == config


def test_rows_are_written_as_they_were_reported_for_each_seed():
    watch.main(f"ppo.py {PROBE} {TINY} --seeds 1 2 --rows rows.csv --curves x.png".split())
    module, rows = record.load_script(TOP / "ppo.py"), []
    module.main(record.make_config(module, f"{PROBE} {TINY} --seed 2".split()), rows.append)
    written = list(csv.DictReader(Path("rows.csv").read_text(encoding="utf-8").splitlines()))
    assert [row.pop("seed") for row in written] == ["1"] * 3 + ["2"] * 3
    assert written[3:] == [{key: str(value) for key, value in row.items()} for row in rows]


def test_curves_mark_what_was_solved_and_hide_nothing():
    table = [(1, 0, 1, 1, np.nan), (1, 20, 480, 0.1, 1),  # seed 1 is solved after 20 of 40 steps
             (2, 0, 2, 1, np.nan), (2, 20, 490, 0.1, 2), (2, 40, 300, 0.001, 3)]
    rows = [dict(zip(("seed", "step", "return", "alpha", "loss"), values)) for values in table]
    figure = watch.plot_curves("x.svg", rows, "title", 475, total_timesteps=40)
    panels, legend = figure.axes, figure.legends[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[0].lines}
    assert list(lines) == ["seed 1", "seed 2", "solved", "reward threshold"]
    assert lines["seed 2"] == [[0, 2], [20, 490], [40, 300]] and lines["solved"] == [[20, 480]]
    assert [axes.get_yscale() for axes in panels] == ["linear", "log", "linear"]
    figure.canvas.draw()
    assert all(legend.get_window_extent().y1 < axes.get_tightbbox().y0 for axes in panels)
    assert "<svg" in Path("x.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, ending", [
    ("Ahead", "terminated"), ("Truncated", "time limit"), ("Endless", "cut here")])
def test_only_an_episode_that_terminated_ends_in_red(name, ending, monkeypatch, capsys):
    env = gym.make(f"probes:{name}-v0").unwrapped
    monkeypatch.setattr(env, "metadata", {"render_fps": 2})
    monkeypatch.setattr(env, "render", lambda: np.zeros((10, 10, 3), np.uint8))
    pictures = watch.film("title", env, watch.play(SimpleNamespace(act=zeros), env, seed=1))
    red = [np.ptp(np.array(picture)[:watch.HEIGHT], axis=2).max() > 50 for picture in pictures]
    assert ending in capsys.readouterr().out
    assert red == [False] * (len(red) - 1) + [ending == "terminated"]


def test_agents_side_by_side_in_a_gif():
    watch.main(f"ppo.py {TINY} --gif trained.gif --untrained --save agent.pt".split())
    watch.main("ppo.py --gif loaded.gif --untrained --load agent.pt".split())
    for name in "trained.gif", "loaded.gif":
        frames = ImageSequence.Iterator(Image.open(name))
        first, second, *_ = [np.array(frame.convert("RGB")) for frame in frames]
        assert first.shape[1] == 2 * (watch.WIDTH + 2) and (first != second).any()


@pytest.mark.parametrize("env_id", ["CartPole-v1", record.SWING_UP])
def test_a_demonstration_is_drawn_in_its_recorded_states(env_id):
    if env_id != "CartPole-v1":
        pytest.importorskip("pybullet")
    save_agent("ppo", env_id, "agent.pt")
    record.main("ppo.py --load agent.pt --steps 30 --epsilon 0.5 -o demo.npz".split())
    data, env, seen = np.load("demo.npz"), gym.make(env_id), []
    for _, total, _ in watch.replay(watch.load_episode("demo.npz", env), env):
        one = env.unwrapped
        state = one.state if env_id == "CartPole-v1" else one.envs._outcome()[0][0]
        seen.append([*state, total])
    end = len(seen) - 1
    assert np.array(seen)[:end, :-1] == pytest.approx(data["observations"][:end], abs=1e-5)
    assert seen[end][-1] == data["rewards"][:end].sum() and 2 < end <= 30


def test_the_rule_makes_the_file_in_the_folder():
    pytest.importorskip("pybullet")
    record.main("swing_up --noise 0.3 --steps 300 --seed 5 -o mine.npz".split())
    mine, shipped = np.load("mine.npz"), np.load(SWING_UP)
    for key in shipped:
        np.testing.assert_array_equal(mine[key], shipped[key], strict=True)
    assert np.flatnonzero(mine["timeouts"]).tolist() == [299, 599, 899, 1199, 1499]
    assert mine["rewards"].reshape(5, 300).sum(1).tolist() == [206, 206, 0, 195, 0]


@pytest.mark.parametrize("steps, length", [(7, 7), (None, 1000)])
def test_recording_ends_where_the_environment_does_not(steps, length):
    data, returns = record.record(zeros, "probes:Endless-v0", 2, steps, 0, 0, seed=1)
    assert returns.tolist() == [length] * 2
    assert np.flatnonzero(data["timeouts"]).tolist() == [length - 1, 2 * length - 1]


def test_recording_copies_what_an_environment_uses_again_and_explores_alike_with_a_seed():
    one, two = [record.record(zeros, "probes:Vector-v0", 4, None, 0, 0.5, 1)[0] for _ in "12"]
    assert all((one[key] == two[key]).all() for key in record.KEYS)
    starts, ends = one["observations"][:, 0] == 0, one["terminals"] | one["timeouts"]
    assert starts.sum() == 4 and (starts[1:] == ends[:-1]).all() and {*one["actions"]} == {0, 1}


@pytest.mark.parametrize("program, words, sentence", [
    (watch, "ppo.py --rows no/x.csv", "no/x.csv: expected a .csv in a folder that exists"),
    (watch, "ppo.py --curves x.bmp", "x.bmp: expected a .png or .svg or .pdf in a folder"),
    (watch, "ppo.py --gif x.gif --load ppo.pt --gamma 1", "--load does not train: it takes no"),
    (watch, "dqn.py --gif x.gif --load ppo.pt", "not an agent of this dqn.py: Config.__init__()"),
    (watch, "pofd.py --gif x.gif --load ppo.pt", "agent of this pofd.py: it has other settings"),
    (watch, f"dqn.py --gif x.gif {PROBE}", "can't be drawn: render_modes [] lack rgb_array"),
    (watch, "dqn.py --gif x.gif", "pygame is not installed"),
    (watch, "ppo.py --gif x.gif --demo demo.npz", "found [(3,), (1,), (), (), ()]"),
    (watch, "ppo.py --gif x.gif --env-id Pendulum-v1 --demo demo.npz", "can't be put into the st"),
    (record, "ppo.py --load ppo.pt --env-id Acrobot-v1 -o x.npz", "size mismatch")])
def test_wrong_input_is_told_before_training(program, words, sentence, capsys, monkeypatch):
    save_agent("ppo", "CartPole-v1", "ppo.pt")
    columns = np.zeros((5, 3)), np.zeros((5, 1)), np.zeros(5), np.ones(5, bool), np.ones(5, bool)
    np.savez("demo.npz", **dict(zip(record.KEYS, columns)))
    if "pygame" in sentence:
        monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SystemExit, match="2"):
        program.main(words.split())
    assert sentence in capsys.readouterr().err and not list(Path().glob("x.*"))
