"""demos/watch.py shows what happened, demos/record.py writes down what was played."""
import csv
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from demos import record, watch
from PIL import Image, ImageSequence

from tiny import SCRIPTS, TOP, probe, weights

TINY = "--total-timesteps 64 --eval-frequency 32 --eval-episodes 2 --num-steps 8 --hidden-size 8"
PROBE = "--env-id probes:ByActions-v0 --num-envs 4"
SWING_UP = TOP / "demos" / "InvertedPendulumSwingupPyBulletSparseEnv-v0.npz"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs a program in an empty folder. It returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(program, words):
        try:
            program.main(words.split())
        except SystemExit as error:
            assert error.code == 2
        return "".join(capsys.readouterr())
    return run


def zeros(obs):
    """Always the first action."""
    return np.zeros(len(obs), int)


def save_agent(script, env_id, path="agent.pt"):
    """Write what --save of a script would, for an untrained agent."""
    module = record.load_script(TOP / f"{script}.py")
    config = module.Config(env_id=env_id, hidden_size=8)
    agent = record.make_agent(module, config)
    torch.save({"config": vars(config), "weights": agent.state_dict()}, path)
    return module, config, agent


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_agent_is_loaded_without_training_and_without_demonstrations(script, tmp_path):
    path = tmp_path / "agent.pt"
    module, config, agent = save_agent(script, probe(script, "ByActions"), path)
    module.main = module.load_demonstrations = None
    loaded, loaded_config = record.load_agent(module, path)
    assert weights(loaded) == weights(agent) and loaded_config == config


def test_rows_are_written_as_they_were_reported_for_each_seed(run):
    run(watch, f"ppo.py {PROBE} {TINY} --seeds 1 2 --rows rows.csv --curves curves.svg")
    module, rows = record.load_script(TOP / "ppo.py"), []
    settings = record.make_config(module, f"{PROBE} {TINY} --seed 2".split())
    module.main(settings, rows.append)
    written = list(csv.DictReader(Path("rows.csv").read_text(encoding="utf-8").splitlines()))
    assert [row.pop("seed") for row in written] == ["1"] * 3 + ["2"] * 3
    assert written[3:] == [{key: str(value) for key, value in row.items()} for row in rows]
    assert "<svg" in Path("curves.svg").read_text(encoding="utf-8")


def test_curves_mark_what_was_solved_and_hide_nothing(monkeypatch):
    figures = []
    monkeypatch.setattr(watch.Figure, "savefig", lambda figure, path: figures.append(figure))
    rows = [  # seed 1 is solved after 20 steps, seed 2 has its last row at the last step
        {"seed": seed, "step": step, "return": value, "alpha": 0.1**step, "loss": loss}
        for seed, step, value, loss in [(1, 0, 1, np.nan), (1, 20, 480, 1), (2, 0, 2, np.nan),
                                        (2, 20, 490, 2), (2, 40, 300, 3)]]
    watch.plot_curves("x.png", rows, "title", 475, total_timesteps=40)
    panels, legend = figures[0].axes, figures[0].legends[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[0].lines}
    assert list(lines) == ["seed 1", "seed 2", "solved", "reward threshold"]
    assert lines["seed 2"] == [[0, 2], [20, 490], [40, 300]] and lines["solved"] == [[20, 480]]
    assert [axes.get_yscale() for axes in panels] == ["linear", "log", "linear"]
    figures[0].canvas.draw()
    assert all(legend.get_window_extent().y1 < axes.get_window_extent().y0 for axes in panels)


@pytest.mark.parametrize("name, ending", [
    ("Ahead", "terminated"), ("Truncated", "time limit"), ("Endless", "cut here")])
def test_only_an_episode_that_terminated_ends_in_red(name, ending, monkeypatch, capsys):
    env = gym.make(f"probes:{name}-v0").unwrapped
    monkeypatch.setattr(env, "metadata", {"render_fps": 2})
    monkeypatch.setattr(env, "render", lambda: np.zeros((10, 10, 3), np.uint8))
    pictures = watch.film("title", env, watch.play(SimpleNamespace(act=zeros), env, seed=1))
    red = [np.ptp(np.array(picture, int)[:watch.HEIGHT], axis=2).max() > 50 for picture in pictures]
    assert ending in capsys.readouterr().out
    assert red == [False] * (len(red) - 1) + [ending == "terminated"]


def test_agents_side_by_side_in_a_gif(run):
    run(watch, f"ppo.py {TINY} --gif trained.gif --untrained --save agent.pt")
    run(watch, "ppo.py --gif loaded.gif --untrained --load agent.pt")
    for name in "trained.gif", "loaded.gif":
        frames = ImageSequence.Iterator(Image.open(name))
        first, second, *_ = [np.array(frame.convert("RGB")) for frame in frames]
        assert first.shape[1] == 2 * (watch.WIDTH + 2) and (first != second).any()


@pytest.mark.parametrize("env_id", [
    "CartPole-v1", "demos.pendulums:InvertedPendulumSwingupPyBulletSparseEnv-v0"])
def test_a_demonstration_is_drawn_in_its_recorded_states(env_id, tmp_path):
    if env_id.startswith("demos"):
        pytest.importorskip("pybullet")
    _, _, agent = save_agent("ppo", env_id, tmp_path / "agent.pt")
    data, returns = record.record(agent.act, env_id, 2, 30, noise=0.5, epsilon=0.5, seed=1)
    np.savez(tmp_path / "demo.npz", **data)
    env = gym.make(env_id)
    watched = watch.replay(watch.load_episode(tmp_path / "demo.npz", env), env)
    end = np.flatnonzero(data["terminals"] | data["timeouts"])[0]
    for step, (action, total, ending) in enumerate(watched):
        state = env.unwrapped.state if "Cart" in env_id else env.unwrapped.envs._outcome()[0][0]
        assert state == pytest.approx(data["observations"][min(step, end)], abs=1e-5)
    assert step == end + 1 and total == returns[0] and ending


def test_the_rule_makes_the_file_in_the_folder(run):
    pytest.importorskip("pybullet")
    run(record, "swing_up --noise 0.3 --steps 300 --seed 5 -o mine.npz")
    mine, shipped = np.load("mine.npz"), np.load(SWING_UP)
    assert list(mine) == list(shipped) == list(record.KEYS)
    for key in record.KEYS:
        assert (mine[key] == shipped[key]).all() and mine[key].dtype == shipped[key].dtype
    assert np.flatnonzero(mine["timeouts"]).tolist() == [299, 599, 899, 1199, 1499]
    assert not mine["terminals"].any()
    assert mine["rewards"].reshape(5, 300).sum(1).tolist() == [206, 206, 0, 195, 0]


@pytest.mark.parametrize("steps, length", [(7, 7), (None, 1000)])
def test_recording_ends_where_the_environment_does_not(steps, length, tmp_path):
    _, config, agent = save_agent("ppo", "probes:EndlessBox-v0", tmp_path / "agent.pt")
    data, returns = record.record(agent.act, config.env_id, 2, steps, 0.5, 0.0, seed=1)
    assert returns.tolist() == [length] * 2
    assert np.flatnonzero(data["timeouts"]).tolist() == [length - 1, 2 * length - 1]
    assert data["observations"][:length, 0].tolist() == list(range(length))


def test_recording_copies_what_an_environment_uses_again_and_gives_the_same_bits_again():
    one, two = [record.record(zeros, "probes:Vector-v0", 4, None, 0, 0.5, 1)[0] for _ in "12"]
    ends = one["terminals"] | one["timeouts"]
    assert all((one[key] == two[key]).all() for key in record.KEYS)
    assert ends.sum() == 4 and {*one["actions"]} == {0, 1}
    starts = np.concatenate([[0], np.flatnonzero(ends)[:-1] + 1])
    assert (one["observations"][starts, 0] == 0).all()
    assert (np.diff(one["observations"][:, 0])[~ends[:-1]] == 1).all()


@pytest.mark.parametrize("program, words, sentence", [
    (watch, "ppo.py", "expected --gif, --curves or --rows"),
    (watch, "nosuch.py --gif x.gif", "nosuch.py: no such script"),
    (watch, "ppo.py --rows no/x.csv", "no/x.csv: expected a .csv in a folder that exists"),
    (watch, "ppo.py --curves x.bmp", "x.bmp: expected a .png or .svg or .pdf in a folder"),
    (watch, "ppo.py --rows x.csv --untrained", "--untrained and --demo need --gif"),
    (watch, "ppo.py --gif x.gif --load dqn.pt", "dqn.pt: not an agent of this ppo.py: Config"),
    (watch, "dqn.py --gif x.gif --load dqn.pt --gamma 1", "--load does not train: it takes no"),
    (watch, "dqn.py --gif x.gif --load demo.npz", "demo.npz: not an agent of this dqn.py"),
    (watch, "dqn.py --gif x.gif --load x.pt", "x.pt: expected a file that a script's --save wrote"),
    (watch, f"dqn.py --gif x.gif {PROBE}", "can't be drawn: render_modes [] lack rgb_array"),
    (watch, "ppo.py --gif x.gif --demo demo.npz", "found [(3,), (1,), (), (), ()]"),
    (watch, "ppo.py --gif x.gif --env-id Pendulum-v1 --demo demo.npz", "can't be put into the st"),
    (record, "ppo.py -o x.npz", "expected a script and --load, or swing_up"),
    (record, "dqn.py --load dqn.pt --env-id Acrobot-v1 -o x.npz", "size mismatch"),
    (record, "swing_up -o x.pt", "x.pt: expected a .npz in a folder that exists")])
def test_wrong_input_ends_with_a_sentence_before_training(program, words, sentence, run):
    save_agent("dqn", "CartPole-v1", "dqn.pt")
    columns = np.zeros((5, 3)), np.zeros((5, 1)), np.zeros(5), np.ones(5, bool), np.ones(5, bool)
    np.savez("demo.npz", **dict(zip(record.KEYS, columns)))
    output = run(program, words)
    assert sentence in output and "step 0" not in output
    assert not list(Path().glob("x.*"))


@pytest.mark.parametrize("module", ["matplotlib.figure", "PIL", "pygame"])
def test_what_is_not_installed_is_missed_before_training(module, monkeypatch, run):
    monkeypatch.setitem(sys.modules, module, None)
    if module == "pygame":
        assert "error: pygame is not installed" in run(watch, f"ppo.py {TINY} --gif x.gif")
    else:
        with pytest.raises(ImportError, match=module):
            importlib.reload(watch)
