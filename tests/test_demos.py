"""watch.py shows what happened, record.py writes it down, trace.py shows an update's lines."""
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from demos import record, trace, watch
from PIL import Image, ImageSequence

from tiny import KINDS, SCRIPTS, TOP, weights

TINY = "--total-timesteps 64 --eval-frequency 32 --eval-episodes 2 --num-steps 8 --update-epochs 1"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save_agent(script, env_id, path):
    module = record.load_script(f"{script}.py")
    config = module.Config(env_id=env_id, hidden_size=8)
    agent = record.make_agent(module, config)
    torch.save({"config": vars(config), "weights": agent.state_dict()}, path)
    return module, config, agent


@pytest.mark.parametrize("script, kind", KINDS.items())
def test_an_agent_is_loaded_without_training_and_without_demonstrations(script, kind):
    module, config, agent = save_agent(script, f"probes:ByActions{kind}-v0", "agent.pt")
    module.main = module.load_demonstrations = None
    loaded, loaded_config = record.load_agent(module, "agent.pt")
    assert weights(loaded) == weights(agent) and loaded_config == config


def test_curves_mark_what_was_solved_and_hide_nothing():
    one = [(0, 1, np.nan), (20, 480, 1)]  # solved after 20 of 40 steps
    two = [(0, 2, np.nan), (20, 490, 2), (40, 300, 3)]
    columns = "step", "return", "loss"
    runs = {seed: [dict(zip(columns, row)) for row in rows] for seed, rows in [(1, one), (2, two)]}
    config = SimpleNamespace(env_id="CartPole-v1", total_timesteps=40)
    figure = watch.plot_curves("x.svg", runs, config)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert list(lines) == ["seed 1", "seed 2", "solved", "reward threshold"]
    assert lines["seed 2"] == [[0, 2], [20, 490], [40, 300]] and lines["solved"] == [[20, 480]]
    figure.canvas.draw()
    top = figure.legends[0].get_window_extent().y1
    assert all(top < axes.get_tightbbox().y0 for axes in figure.axes)
    assert "<svg" in Path("x.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, ending", [
    ("Ahead", "terminated"), ("Truncated", "time limit"), ("Endless", "cut here")])
def test_only_an_episode_that_terminated_ends_in_red(name, ending, monkeypatch, capsys):
    env = gym.make(f"probes:{name}-v0").unwrapped
    monkeypatch.setattr(env, "metadata", {"render_fps": 2})
    monkeypatch.setattr(env, "render", lambda: np.zeros((10, 10, 3), np.uint8))
    agent = SimpleNamespace(act=lambda obs: np.zeros(len(obs), int))
    pictures = watch.film("title", agent, env, seed=1)
    red = [np.ptp(np.array(picture)[:watch.HEIGHT], axis=2).max() > 50 for picture in pictures]
    assert ending in capsys.readouterr().out
    assert red == [False] * (len(red) - 1) + [ending == "terminated"]


def test_trained_and_loaded_agents_are_shown_side_by_side():
    watch.main(f"ppo.py {TINY} --gif trained.gif --curves x.png --seeds 1 2".split())
    save_agent("ppo", "CartPole-v1", "agent.pt")
    watch.main("ppo.py --gif loaded.gif --untrained --load agent.pt".split())
    for name in "trained.gif", "loaded.gif":
        frames = ImageSequence.Iterator(Image.open(name))
        first, second, *_ = [np.array(frame.convert("RGB")) for frame in frames]
        assert first.shape[1] == 2 * (watch.WIDTH + 2) and (first != second).any()
    assert Image.open("x.png").size[0] > 1000


def test_the_rule_makes_the_file_in_the_folder():
    pytest.importorskip("pybullet")
    record.main("swing_up --noise 0.3 --steps 300 --seed 5 -o mine.npz".split())
    mine = np.load("mine.npz")
    shipped = np.load(TOP / "demos" / "InvertedPendulumSwingupPyBulletSparseEnv-v0.npz")
    for key in shipped:
        np.testing.assert_array_equal(mine[key], shipped[key], strict=True)


@pytest.mark.parametrize("steps, length", [("--steps 7", 7), ("", 1000)])
def test_an_agent_is_recorded_also_where_episodes_do_not_end(steps, length):
    save_agent("ppo", "probes:ByActions-v0", "agent.pt")
    words = f"ppo.py --load agent.pt --env-id probes:Endless-v0 --epsilon 0.5 {steps} -o x.npz"
    record.main(words.split())
    data = np.load("x.npz")
    assert sorted(data) == sorted(record.KEYS) and {*data["actions"]} == {0, 1}
    assert np.flatnonzero(data["timeouts"]).tolist() == [i * length - 1 for i in range(1, 6)]


def test_recording_copies_what_an_environment_uses_again_and_explores_alike_with_a_seed():
    settings = lambda obs: obs[:, 0] * 0, "probes:Vector-v0", 4, None, 0, 0.5, 1
    one, two = [record.record(*settings)[0] for _ in "12"]
    assert all((one[key] == two[key]).all() for key in record.KEYS)
    starts, ends = one["observations"][:, 0] == 0, one["terminals"] | one["timeouts"]
    assert starts.sum() == 4 and (starts[1:] == ends[:-1]).all() and {*one["actions"]} == {0, 1}


@pytest.mark.parametrize("words, sentence", [
    ("nosuch.py --gif x.gif", "nosuch.py: no such script, expected for example ppo.py"),
    ("ppo.py --gif no/x.gif", "No such file or directory"),
    ("ppo.py --curves x.abc", "Format 'abc' is not supported"),
    ("ppo.py --gif x.gif --load ppo.pt --gamma 1", "--load does not train: it takes no settings"),
    ("dqn.py --gif x.gif --load ppo.pt", "not an agent of this dqn.py: Config.__init__() got"),
    ("dqn.py --gif x.gif --env-id probes:ByActions-v0", "render_modes [] lack rgb_array"),
    ("ppo.py --untrained", "expected --gif or --curves"),
    ("ppo.py --gif x.gif --teacher", "--teacher needs the swing-up"),
    ("dqn.py --gif x.gif", "pygame is not installed")])
def test_wrong_input_is_told_before_training(words, sentence, capsys, monkeypatch):
    save_agent("ppo", "CartPole-v1", "ppo.pt")
    if "pygame" in sentence:
        monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SystemExit, match="2"):
        watch.main(words.split())
    assert sentence in capsys.readouterr().err and not list(Path().glob("x.*"))


def rows_of_page(script):
    trace.main([f"{script}.py", "--html", "page.html"])
    page = Path("page.html").read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json">(.*?)</script>', page)[1]
    return json.loads(data)["rows"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_page_shows_the_lines_of_an_update_in_order(script):
    if script in ("pofd", "sac"):
        pytest.importorskip("pybullet")
    rows = rows_of_page(script)
    main = [row["number"] for row in rows if row["depth"] == 0]
    assert main == sorted({*main}) and len(main) > 12
    text, place = json.dumps(rows), 0
    for words in "Act", '"<", "obs"', "envs.step(", '">", "truncated"', "Learn", "gradient":
        place = text.index(words, place)
    assert "evaluate(" not in text


def test_ppo_is_shown_where_it_clips():
    rows = rows_of_page("ppo")
    notes = {name: text for row in rows for _, name, _, text in row["notes"]}
    ratio, clipped = json.loads(notes["ratio"]), json.loads(notes["clipped_ratio"])
    assert ratio != clipped == [min(max(x, 0.8), 1.2) for x in ratio]
