"""What the four scripts share: command line, reports, evaluation, saving, spaces and layout."""
import concurrent.futures
import io
import os
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import probes
from tiny import SCRIPTS, TOP, demonstrations, network, spy, tiny, train, weights

COLUMNS = {"dqn": "td_loss epsilon", "ppo": "value_loss entropy", "sac": "critic_loss alpha",
           "pofd": "value_loss entropy discriminator_loss"}
LEARN = dict(total_timesteps=2_048, eval_frequency=2_048, batch_size=64, buffer_size=1_000,
             hidden_size=32, learning_rate=1e-2, tau=0.05, update_epochs=10, reward_lambda=0.0)
LINES = {"dqn.py": 165, "ppo.py": 180, "sac.py": 195, "pofd.py": 210, "demos/*.py": 800,
         "tests/*.py": 1_700, "README.md": 150, "dqn.py ppo.py sac.py pofd.py": 737}


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


def changed(config):
    """Another value for each setting, none of them the default."""
    texts = {"env_id": config.env_id.replace("ByActions", "Both"), "save": "agent.pt",
             "demo": demonstrations(seed=1)}
    numbers = {int: lambda value: 2 * value, float: lambda value: value / 3 or 0.1}
    return {name: texts[name] if name in texts else numbers[type(value)](value)
            for name, value in vars(config).items()}


def test_command_takes_each_setting_as_a_flag_and_saves_the_agent_that_main_gives(
        script, tmp_path):
    module, config = tiny(script)
    settings = changed(config)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(TOP / "tests")}
    output = subprocess.check_output(
        [sys.executable, module.__file__, *flags], cwd=tmp_path, text=True, env=environment)
    *printed, closing = output.splitlines()
    assert re.match("ended .*512 steps.* return ", closing)
    agent, rows = train(script, **settings | {"save": ""})
    assert [row.split()[1] for row in printed] == [str(row["step"]) for row in rows]
    saved = torch.load(tmp_path / "agent.pt", weights_only=True)
    assert saved["config"] == settings
    again = network(script, hidden_size=saved["config"]["hidden_size"])
    again.load_state_dict(saved["weights"])
    assert weights(again) == weights(agent)


def test_every_setting_changes_the_outcome(script):
    def outcome(**settings):
        agent, rows = train(script, "Lengths", **settings)
        return weights(agent), repr(rows)
    assert outcome() == outcome()
    for name, value in changed(tiny(script)[1]).items():
        if name not in ("save", "eval_frequency", "eval_episodes"):
            assert outcome() != outcome(**{name: value}), name


@pytest.mark.parametrize("frequency, total, steps", [
    (128, 317, [0, 128, 256, 320]), (192, 320, [0, 192, 320]), (128, 0, [0])])
def test_there_is_a_row_at_step_0_then_at_each_eval_frequency_and_at_the_end(
        script, frequency, total, steps, monkeypatch):
    opened = []
    spy(monkeypatch, gym, "make_vec", lambda envs, *_: opened.append(envs))
    _, rows = train(script, eval_frequency=frequency, total_timesteps=total)
    assert [row["step"] for row in rows] == steps
    assert len(opened) == 1 + len(steps) + (script == "dqn") and all(x.closed for x in opened)


def test_a_row_is_a_dict_of_plain_numbers_and_nan_before_learning(script):
    _, rows = train(script)
    names = ["step", "return", *COLUMNS[script].split()]
    for row in rows:
        assert list(row) == names
        assert [type(value) for value in row.values()] == [int] + [float] * len(names[1:])
        assert np.isnan(row[names[2]]) == (row["step"] == 0)


def test_a_row_is_in_the_file_at_once_and_shows_small_returns(script, monkeypatch):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file))
    tiny(script)[0].show({"step": 4096, "return": 0.0123})
    assert file.getvalue().split() == [b"step", b"4096", b"return", b"0.0123"]


def test_evaluate_sums_the_rewards_of_one_episode_each_and_cuts_at_10_000_steps(script):
    (module, config), agent = tiny(script, "Lengths"), network(script)
    lengths = [np.random.default_rng(7 + i).integers(2, 9) for i in range(30)]
    assert module.evaluate(agent, config.env_id, 30, seed=7).tolist() == lengths
    action = agent.act(np.zeros((1, 2)))
    agent.act = lambda obs: action
    assert module.evaluate(agent, tiny(script, "Endless")[1].env_id, 1, seed=1) == [10_000]


@pytest.mark.parametrize("threshold, few, many, closing", [
    (2.0, 20, 99, r"solved .*\b0 steps.* return 1.9\s"),  # of the 100 others
    (2.0, 20, 98, r"not solved .*256 steps.* return 1.8\s"),  # of the 100 others
    (2.0, 19, 99, r"not solved .*256 steps.* return 1.5\s"),  # of the row's 20 episodes
    (None, 19, 99, r"ended .*256 steps.* return 1.5\s")])
def test_solved_is_what_99_percent_of_a_rows_episodes_reach_and_of_100_others(
        script, threshold, few, many, closing, monkeypatch, capsys):
    (module, config), seeds = tiny(script), []

    def evaluate(agent, env_id, episodes, seed):
        seeds.extend(range(seed, seed + episodes))
        return np.where(np.arange(episodes) < (few if episodes == 20 else many), 2.0, -8.0)
    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(gym.spec(config.env_id.split(":")[1]), "reward_threshold", threshold)
    train(script, eval_episodes=20)
    if script == "dqn" and few == 19:  # at the end its best agent is judged by 100 others as well
        closing = closing.replace("not solved", "solved").replace("1.5", "1.9")
    assert re.match(closing, capsys.readouterr().out)
    assert len(set(seeds)) == len(seeds), "no episode is seen twice"


def test_nothing_is_learned_before_the_first_row_is_saved(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("it learned"))
    train(script, total_timesteps=0)
    with pytest.raises(Exception, match="nowhere"):
        train(script, save=str(tmp_path / "nowhere" / "agent.pt"))


def test_runs_at_the_same_time_may_save_to_one_file(script, tmp_path):
    settings = dict(eval_frequency=1, eval_episodes=1, num_steps=2, demo=demonstrations(seed=1))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        save = str(tmp_path / "agent.pt")
        runs = [pool.submit(train, script, save=save, **settings) for _ in range(3)]
    assert all(len(run.result()[1]) >= 33 for run in runs)


@pytest.mark.parametrize("script, part, space", [
    *((script, "action_space", space) for script in SCRIPTS for space in [
        *(Box(-1, 1, shape) for shape in [(), (1, 3), (2, 2)]), Box(-np.inf, np.inf, (1,)),
        Box(0, np.inf, (2,)), MultiBinary(3), MultiDiscrete([2, 3])]),
    ("dqn", "action_space", Box(-1, 1, (1,))), ("dqn", "action_space", Discrete(2, start=1)),
    *((script, "action_space", Discrete(2)) for script in ("pofd", "sac")),
    *((script, "obs_space", space) for script in SCRIPTS for space in [
        Box(0, 255, (4, 4, 3), np.uint8), Box(-1, 1, ()), Dict(a=probes.FLAT), Discrete(4)])])
def test_spaces_that_do_not_fit_are_refused_by_name(script, part, space):
    with pytest.raises(AssertionError, match=re.escape(str(space))):
        network(script, **{part: space})


BOXES = [
    probes.FAR, probes.TWO, Box(-1, 1, (1,), np.float64),
    Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,)),
    Box(-4.6, 2.7, (1,)),  # one rounding step misses its upper bound
    Box(-100, 100, (3,), np.int8), Box(10, 250, (2,), np.uint8),
    Box(-2**15, 2**15 - 1, (1,), np.int16)]


@pytest.mark.parametrize("script, space", [
    ("dqn", Discrete(5)), ("ppo", Discrete(2)), ("ppo", Discrete(3, start=-7)),
    *((script, space) for script in SCRIPTS[1:] for space in BOXES)])
def test_actions_are_in_their_space_and_reach_both_ends(script, space):
    """The last layer's bias drives the policy to either end."""
    agent, obs = network(script, space), np.random.default_rng(0).normal(size=(30, 2))
    for bias, end in (0, None), (-100, "low"), (100, "high"):
        getattr(agent, "actor", agent)[-1].bias.data.fill_(bias)
        actions = agent.act(obs)
        assert actions.dtype == space.dtype and all(space.contains(action) for action in actions)
        if isinstance(space, Box) and end:
            assert actions == pytest.approx(np.stack([getattr(space, end)] * 30))


@pytest.mark.parametrize("limit", [6, 250])
def test_training_episodes_have_the_environments_own_time_limit(script, limit, monkeypatch):
    ends = []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda result, *_: ends.append(result[3]))
    monkeypatch.setattr(tiny(script)[0], "evaluate", lambda *_: np.zeros(1))
    settings = dict(total_timesteps=4 * (limit + 10), restart_frequency=10_000)
    train(script, f"Limit{limit}", num_steps=limit + 10, **settings)
    steps = np.flatnonzero(np.stack(ends)[:, 0])  # an episode, then a step that only resets
    assert steps.tolist() == list(range(limit - 1, len(ends), limit + 1))


@pytest.mark.parametrize("script", ["pofd", "sac"])
def test_environments_without_an_end_start_afresh_here_after_16_steps(script, monkeypatch):
    seen = []
    spy(monkeypatch, gym.vector.SyncVectorEnv, "step", lambda result, *_: seen.append(result[0]))
    monkeypatch.setattr(tiny(script)[0], "evaluate", lambda *_: np.zeros(1))
    train(script, "Endless")
    assert np.stack(seen)[:, :, 0].tolist() == [[step] * 4 for step in [*range(1, 17)] * 4]


@pytest.mark.parametrize("name, other, scale", [
    pytest.param("Lengths", "Hundreds", 0.01, id="rewards times 100, with a hundredth as scale"),
    pytest.param("Lengths", "Vector", 1.0, id="arrays that are reused, with 0 and 1 as flags"),
    pytest.param("Dice", "Dice", 1.0, id="an environment that draws from np.random")])
def test_the_same_bits(script, name, other, scale):
    (one, rows), (two, other_rows) = train(script, name), train(script, other, reward_scale=scale)
    assert weights(one) == weights(two)
    returns = [row["return"] / scale for row in rows]  # of the environment, not scaled
    assert [row["return"] for row in other_rows] == pytest.approx(returns)


@pytest.mark.parametrize("name", ["NoMode", "SameStep"])
def test_other_kinds_of_autoreset_are_refused_by_name(script, name):
    with pytest.raises(AssertionError, match="NEXT_STEP"):
        train(script, name)


def test_the_reset_step_is_never_learned_from_and_only_termination_cuts(script, monkeypatch):
    """Observations are (step, episode). Of 3 steps each, odd episodes are truncated."""
    module, kept, parts = tiny(script)[0], [], []
    if script in ("dqn", "sac"):
        spy(monkeypatch, module.ReplayBuffer, "sample", lambda batch, *_: (
            kept.append(batch.obs), parts.append((batch.obs, batch.next_obs, batch.terminated))))
    else:
        spy(monkeypatch, module, "make_batch", lambda batch, rollout, *_: (kept.append(batch[0]),
            parts.extend((row[0], row[-4], row[-3]) for row in rollout if not row[-1].any())))
    train(script, "Both", total_timesteps=320)
    assert set(np.concatenate(kept)[:, 0]) == {0, 1, 2}
    obs, next_obs, terminated = (np.concatenate(column) for column in zip(*parts))
    assert (next_obs == obs + [1, 0]).all(), "the next observation is of the same episode"
    last, even = next_obs[:, 0] == 3, obs[:, 1] % 2 == 0
    assert (terminated == (last & even)).all()
    assert (last & even).sum() > 20 and (last & ~even).sum() > 20


@pytest.mark.parametrize("script, loss", [("dqn", "td_loss"), ("sac", "critic_loss")])
def test_target_network_follows_by_tau_after_each_gradient_step(script, loss, monkeypatch):
    seen = []
    spy(monkeypatch, tiny(script)[0], loss, lambda _, *networks: seen.append(
        [torch.nn.utils.parameters_to_vector(x.parameters()).detach() for x in networks[:2]]))
    train(script, tau=0.25)
    assert len(seen) == 64
    for (_, before), (source, after) in zip(seen, seen[1:]):
        assert torch.allclose(after, before + 0.25 * (source - before), atol=1e-6)


@pytest.mark.parametrize("name, values", [
    ("Ahead", [0.25, 0.5, 1]), ("Truncated", [2] * 4)])  # at the time limit it bootstraps
def test_values_are_learned(script, name, values, monkeypatch):
    """V(s), or the mean of Q(s, .), or SAC's Q(s, 0), whose entropy is worth little here."""
    critics = []
    if script == "sac":
        spy(monkeypatch, tiny("sac")[0], "critic_loss", lambda _, *args: critics.append(args[0]))
    agent, _ = train(script, name, gamma=0.5, **LEARN)
    obs = torch.tensor([[step, 1.0] for step in range(len(values))])
    if script == "dqn":
        learned = agent(obs).mean(1)
    elif script == "sac":
        learned = critics[-1](obs, torch.zeros(len(obs), 1)).mean(0)
    else:
        learned = agent.critic(obs).flatten()
    assert learned.tolist() == pytest.approx(values, abs=0.2)


@pytest.mark.parametrize("script, name, best", [
    ("dqn", "ByActions", 4), ("ppo", "ByActions", 4), *((x, "FarBox", 0) for x in SCRIPTS[1:])])
def test_best_action_is_found_also_where_the_bounds_are_far_from_zero(script, name, best):
    _, rows = train(script, env_id=f"probes:{name}-v0", **LEARN)
    assert rows[-1]["return"] >= best - 2


@pytest.mark.learning
@pytest.mark.parametrize("script, seed", [
    ("dqn", 11), ("dqn", 12), ("ppo", 11), ("ppo", 12), ("pofd", 11), ("sac", 11)])
def test_solves_its_task_with_its_defaults(script, seed):
    module, rows = tiny(script)[0], []
    config = module.Config(seed=seed)
    if "PyBullet" in config.env_id:
        pytest.importorskip("pybullet")
    agent = module.main(config, report=rows.append)
    assert rows[-1]["step"] < config.total_timesteps
    threshold = gym.make(config.env_id).spec.reward_threshold
    assert module.evaluate(agent, config.env_id, 100, seed=123_456_789).mean() >= threshold


def test_a_script_imports_only_what_pip_installs_and_names_its_licence(script):
    text = (TOP / f"{script}.py").read_text(encoding="utf-8")
    packages = {*re.findall(r"^(?:import|from) (\w+)", text, re.M)} - sys.stdlib_module_names
    assert packages == {"torch", "gymnasium", "numpy"}
    assert "\n# SPDX-License-Identifier: MIT-0\n" in text


@pytest.mark.parametrize("names, most", LINES.items())
def test_files_are_short(names, most):
    paths = [path for name in names.split() for path in TOP.glob(name)]
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in paths)
    assert 0 < lines <= most, f"{names}: {lines} lines of {most}, take out a feature, not the air"
