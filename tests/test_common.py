"""What the four scripts share: the command line, reproducible runs, what is learned, evaluation, saving."""

import ast
import dataclasses
import os
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

import probes
from tiny import BOX_ONLY, SCRIPTS, TOP, demonstrations, last_step, probe, spy, tiny, train, weights

ROW = r"step +\d+  return +-?\d+\.\d  \w+ -?\d.*"
CLOSING = r"{}\.py {} seed 2: return (-?\d+\.\d) \+- \d+\.\d \(min (\S+)\) over (\d+) episodes, {:,} steps"
all_scripts = pytest.mark.parametrize("script", SCRIPTS)


def network(script, action_space=None):
    """What acts, as `main` builds it for the probes, or for another action space."""
    module, obs_space = tiny(script)[0], probes.FLAT
    action_space = action_space or (probes.ONE if script in BOX_ONLY else Discrete(2))
    if script == "dqn":
        return module.QNetwork(obs_space.shape[0], int(action_space.n), 16)
    if script == "sac":
        return module.Actor(obs_space, action_space, 16, 0.1)
    return module.ActorCritic(obs_space, action_space, 16)


def changed(config):
    """Another value for each setting, but not its default."""
    values = {"env_id": config.env_id.replace("ByActions", "Both"), "save": "agent.pt",
              "demo": demonstrations(1), "max_episode_steps": 2}
    for name, value in vars(config).items():
        if name not in values:
            others = [2 * value, 3 * value] if isinstance(value, int) else [value / 2, value / 3, 0.1]
            values[name] = next(x for x in others if x not in (value, getattr(type(config), name)))
    return {name: values[name] for name in vars(config)}


@pytest.fixture(scope="module", params=SCRIPTS)
def run(request, tmp_path_factory):
    """A run from another folder with a flag for every setting: script, settings, output, what was saved."""
    script, folder = request.param, tmp_path_factory.mktemp("run")
    settings = changed(tiny(script)[1])
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    process = subprocess.run(
        [sys.executable, str(TOP / f"{script}.py"), *flags], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(TOP / "tests")})
    assert process.returncode == 0, process.stderr
    return script, settings, process.stdout, torch.load(folder / "agent.pt", weights_only=True)


def test_command_prints_a_row_per_evaluation_and_a_closing_line(run):
    script, settings, output, _ = run
    *rows, closing = output.splitlines()
    assert len(rows) >= 2 and all(re.fullmatch(ROW, row) for row in rows), output
    assert last_step(rows) >= settings["total_timesteps"]
    match = re.fullmatch(CLOSING.format(script, settings["env_id"], last_step(rows)), closing)
    assert match and float(match[2]) <= float(match[1]) and int(match[3]) >= 20, closing


def test_every_flag_reaches_its_setting(run):
    script, settings, _, saved = run
    defaults = vars(type(tiny(script)[1])())
    assert saved["config"] == settings and not any(defaults[name] == settings[name] for name in defaults)


def test_same_seed_gives_the_same_bits_in_another_process(run):
    script, settings, _, saved = run
    agent, _ = train(script, **settings | {"save": ""})
    assert all(torch.equal(value, saved["weights"][name]) for name, value in agent.state_dict().items())


@all_scripts
def test_every_setting_changes_the_outcome(script):
    outcome = weights(train(script, "Lengths")[0])
    assert outcome == weights(train(script, "Lengths")[0])
    for name, value in changed(tiny(script)[1]).items():
        if name not in ("save", "eval_frequency"):
            assert outcome != weights(train(script, "Lengths", **{name: value})[0]), name


@all_scripts
@pytest.mark.parametrize("frequency, total, steps", [(128, 317, [128, 256, 320]), (192, 320, [192, 320])])
def test_there_is_an_evaluation_every_eval_frequency_steps_and_at_the_end(script, frequency, total, steps):
    _, rows = train(script, eval_frequency=frequency, total_timesteps=total)
    assert [int(row.split()[1]) for row in rows] == steps


@all_scripts
@pytest.mark.parametrize("flag", ["--gamma=x", "--total-timesteps=1e4", "--no-such-flag=1"])
def test_wrong_flag_gets_a_line_from_argparse_and_status_2(script, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", flag])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOP / f"{script}.py"), run_name="__main__")
    assert stop.value.code == 2 and f"{script}.py: error: " in capsys.readouterr().err


WRONG = {"NoSuchEnv-v0": "NoSuchEnv", "nosuchmodule:Env-v0": "nosuchmodule", "probes:Image-v0": "(4, 4, 3)",
         "probes:DictObs-v0": "Dict", "probes:UnboundedAction-v0": "inf",
         "probes:MultiDiscreteAction-v0": "MultiDiscrete"}  # ids, and a word that the exception must have


@pytest.mark.parametrize("script, env_id, word", [
    *((script, *wrong) for script in SCRIPTS for wrong in WRONG.items()),
    ("dqn", "probes:BoxAction-v0", "Box"), ("dqn", "probes:ShiftedAction-v0", "start=1"),
    *((script, "probes:DiscreteAction-v0", "Discrete") for script in BOX_ONLY)])
def test_environment_that_does_not_fit_gets_a_plain_exception(script, env_id, word):
    if script in BOX_ONLY:
        env_id = re.sub("(Image|DictObs)", r"\1Box", env_id)
    with pytest.raises(Exception, match=re.escape(word)):
        train(script, env_id=env_id)


@all_scripts
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_kinds_of_autoreset_are_refused(script, mode, monkeypatch):
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: make_vec(
        *args, **kwargs, vector_kwargs={"autoreset_mode": mode}))
    with pytest.raises(AssertionError, match="NEXT_STEP"):
        train(script)


@pytest.mark.parametrize("script, hidden, networks", [
    ("dqn", ["Linear", "LayerNorm", "ReLU"], 1), ("ppo", ["Linear", "Tanh"], 2),
    ("pofd", ["Linear", "Tanh"], 2), ("sac", ["Linear", "ReLU"], 1)])
def test_network_has_two_hidden_layers(script, hidden, networks):
    layers = [type(layer).__name__ for layer in network(script).modules() if not [*layer.children()]]
    assert layers == (hidden + hidden + ["Linear"]) * networks


@all_scripts
def test_building_a_network_sets_no_seed_and_no_threads(script):
    threads, _ = torch.get_num_threads(), torch.manual_seed(123)
    assert weights(network(script)) != weights(network(script))
    assert (torch.initial_seed(), torch.get_num_threads()) == (123, threads)


@pytest.mark.parametrize("script, space", [
    ("dqn", Discrete(5)), ("ppo", Discrete(2)), ("ppo", Discrete(3, start=5)),
    *((script, space) for script in SCRIPTS[1:] for space in [probes.ONE, *probes.BOXES.values()])])
def test_act_takes_one_observation_or_many_and_stays_in_the_action_space(script, space):
    """On its bounds, too, where the policy's outputs are large."""
    agent, obs = network(script, space), np.random.default_rng(0).normal(size=(99, 2))
    for far in (-100, 0, 100):
        getattr(agent, "actor", agent)[-1].bias.data.fill_(far)
        actions, one = agent.act(obs), agent.act(obs[7])  # from float64, as some environments give
        assert isinstance(actions, np.ndarray) and actions.shape == (99, *space.shape)
        assert all(space.contains(action) for action in [*actions, one])
        assert one == pytest.approx(actions[7], abs=1e-4)
        if isinstance(space, Box) and far:
            assert actions == pytest.approx(np.stack([space.high if far > 0 else space.low] * 99))


@pytest.fixture
def learned(script, monkeypatch):
    """The observations learned from, and obs, next_obs and terminated of all that was handed on for that. An
    observation is (step, episode); episodes have 3 steps, even ones terminate, odd ones are truncated."""
    module, kept, seen = tiny(script)[0], [], []
    if script in ("dqn", "sac"):
        spy(monkeypatch, module.ReplayBuffer, "add", lambda _, self, *batch: (
            kept.append(batch[0]), seen.append((batch[0], *batch[3:5]))))
    else:
        spy(monkeypatch, module, "make_batch", lambda batch, rollout, *_: (
            kept.append(batch[-5]), seen.extend((*row[-7::3][:2], row[-3]) for row in rollout)))
    train(script, "Both", total_timesteps=320)
    return np.concatenate(kept), *(np.concatenate(column) for column in zip(*seen))


@all_scripts
def test_step_that_only_resets_is_never_learned_from(learned):
    assert set(learned[0][:, 0]) == {0, 1, 2} and len(learned[0]) == 320 * 3 / 4


@all_scripts
def test_truncation_bootstraps_from_the_last_observation_and_termination_does_not(learned):
    _, obs, next_obs, terminated = learned
    obs, next_obs, terminated = (array[obs[:, 0] < 3] for array in (obs, next_obs, terminated))
    assert (next_obs == obs + [1, 0]).all(), "the next observation is of the same episode"
    last, even = next_obs[:, 0] == 3, obs[:, 1] % 2 == 0
    assert (terminated == (last & even)).all() and (last & even).sum() > 30 and (last & ~even).sum() > 30


@pytest.mark.parametrize("script", ["dqn", "sac"])
def test_replay_buffer_keeps_the_latest_and_draws_them_uniformly(script):
    buffer, number = tiny(script)[0].ReplayBuffer(5, (2,), ()), np.arange(1.0, 9.0)
    for n in number[:3], number[3:4], number[4:8]:
        buffer.add(np.stack([n, -n], 1), 2 * n, 10 * n, np.stack([n + 1, n], 1), n % 2 == 0)
        assert set(buffer.sample(500).obs[:, 0].tolist()) == set(number[:int(n[-1])][-5:])
    drawn = buffer.sample(2_000)
    n = drawn.obs[:, 0]
    kept, counts = torch.unique(n, return_counts=True)
    assert kept.tolist() == [4, 5, 6, 7, 8] and counts.min() > 320
    assert (drawn.obs[:, 1] == -n).all() and (drawn.action == 2 * n).all() and (drawn.reward == 10 * n).all()
    assert (drawn.next_obs == torch.stack([n + 1, n], 1)).all() and (drawn.terminated == (n % 2 == 0)).all()


@all_scripts
def test_evaluate_returns_the_sum_of_rewards_of_one_episode_each(script):
    """Episodes of 2 to 8 steps that pay 1 each, by the seed. Some terminate and the others are truncated."""
    returns = tiny(script)[0].evaluate(network(script), probe(script, "Lengths"), 30, seed=7)
    lengths = [np.random.default_rng(7 + i).integers(2, 9) for i in range(30)]
    assert isinstance(returns, np.ndarray) and returns.tolist() == lengths and len(set(lengths)) == 7


@all_scripts
def test_evaluate_cuts_an_environment_without_an_end_and_warns(script):
    action = network(script).act(np.zeros((1, 2)))
    agent = SimpleNamespace(act=lambda obs: action)
    with pytest.warns(UserWarning, match="10,000 steps"):
        returns = tiny(script)[0].evaluate(agent, probe(script, "Endless"), 1, seed=1)
    assert returns.tolist() == [10_000]


@all_scripts
def test_what_seems_solved_has_to_be_so_in_other_episodes_as_well(script, monkeypatch):
    (module, config), returns = tiny(script, "Constant"), np.array([[4.0, 2.0], [4.0, 1.0], [4.0, 1.0]])
    monkeypatch.setattr(module, "evaluate", evaluate := Mock(side_effect=returns))
    monkeypatch.setattr(gym.spec(config.env_id.split(":")[1]), "reward_threshold", 2.0)
    agent, rows = train(script, "Constant")
    agents, _, episodes, seeds = zip(*(call.args for call in evaluate.call_args_list))
    assert last_step(rows) == 256 and agents == (agent,) * 3
    assert np.diff(sorted(seeds)).min() >= max(episodes)  # episode i starts from seed + i


@all_scripts
@pytest.mark.parametrize("threshold, steps", [(2.0, 128), (0.0, 128), (2.01, 256), (None, 256)])
def test_training_ends_when_mean_less_deviation_reaches_the_threshold(script, threshold, steps, monkeypatch):
    module, config = tiny(script, "Constant")
    returns = np.array([4.0, 2.0]) if threshold else np.zeros(2)
    monkeypatch.setattr(module, "evaluate", lambda *args: returns)
    monkeypatch.setattr(gym.spec(config.env_id.split(":")[1]), "reward_threshold", threshold)
    agent, rows = train(script, "Constant")
    assert last_step(rows) == steps and isinstance(agent, torch.nn.Module)


@all_scripts
def test_all_environments_are_closed(script, monkeypatch):
    opened = []
    spy(monkeypatch, gym, "make_vec", lambda envs, *_: opened.append(envs))
    train(script)
    assert len(opened) == 3 and all(envs.closed for envs in opened)


@all_scripts
def test_save_is_written_whole_at_each_evaluation_and_loads_without_pickle(script, monkeypatch, tmp_path):
    path, moves = tmp_path / "agent.pt", []
    spy(monkeypatch, os, "replace", lambda _, *names: moves.append(tuple(map(str, names))))
    agent, rows = train(script, save=str(path))
    assert moves == [(f"{path}.tmp", str(path))] * len(rows) and os.listdir(tmp_path) == ["agent.pt"]
    saved, (module, config) = torch.load(path, weights_only=True), tiny(script, save=str(path))
    assert list(saved) == ["config", "weights"] and saved["config"] == dataclasses.asdict(config)
    again = network(script)
    again.load_state_dict(saved["weights"])
    returns = [module.evaluate(one, config.env_id, 5, seed=3).tolist() for one in (agent, again)]
    assert returns[0] == returns[1]


@all_scripts
def test_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_file(script, tmp_path):
    path = tmp_path / "agent.pt"
    with pytest.raises(FloatingPointError, match="nan.* at step"):
        train(script, "Broken", total_timesteps=1_000, eval_frequency=64, save=str(path))
    assert torch.load(path, weights_only=True)["config"]["save"] == str(path)
    assert os.listdir(tmp_path) == ["agent.pt"]


@pytest.mark.parametrize("script, loss", [("dqn", "td_loss"), ("sac", "critic_loss")])
@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_target_network_follows_by_tau_after_each_gradient_step(script, loss, tau, monkeypatch):
    seen = []
    spy(monkeypatch, tiny(script)[0], loss, lambda _, *args: seen.append(
        [[p.detach().clone() for p in network.parameters()] for network in args[:2]]))
    train(script, tau=tau)
    assert len(seen) > 50 and not torch.equal(seen[0][0][0], seen[-1][0][0])
    for (_, before), (online, target) in zip(seen, seen[1:]):
        for old, source, new in zip(before, online, target):
            assert torch.allclose(new, old + tau * (source - old), atol=1e-6)


@pytest.mark.learning
@pytest.mark.parametrize("script, seed, env_id, solved", [
    ("dqn", 11, "", 475), ("dqn", 12, "", 475), ("ppo", 11, "", 475), ("ppo", 12, "", 475),
    ("pofd", 11, "", 475), ("pofd", 11, "MountainCarContinuous-v0", 90), ("sac", 11, "", 950)])
def test_solves_its_task_with_its_defaults(script, seed, env_id, solved):
    module, rows = tiny(script)[0], []
    config = module.Config(seed=seed, env_id=env_id or module.Config.env_id)
    if "PyBullet" in config.env_id:
        pytest.importorskip("pybullet")
    agent = module.main(config, report=rows.append)
    assert last_step(rows) < config.total_timesteps
    assert module.evaluate(agent, config.env_id, 100, seed=1_000_000).mean() >= solved


def test_sweep_on_ray_gives_the_same_weights():
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "tests")])}}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    agents = ray.get([ray.remote(tiny("dqn")[0].main).remote(tiny("dqn", seed=seed)[1]) for seed in (1, 2)])
    ray.shutdown()
    assert [weights(agent) for agent in agents] == [weights(train("dqn", seed=seed)[0]) for seed in (1, 2)]


@pytest.mark.parametrize("script, end", [("dqn", 160), ("ppo", 175), ("sac", 195), ("pofd", 210)])
def test_layout_of_a_script(script, end):
    text = (TOP / f"{script}.py").read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= end
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert packages == {"torch", "gymnasium", "numpy"}
    assert not any(isinstance(node, ast.Try) for node in ast.walk(tree)), "it hides a student's mistakes"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert ast.get_docstring(node), node.name
    assert f"python {script}.py" in ast.get_docstring(tree)
    pinned = set(re.findall(r"^([\w-]+==[\d.]+)", (TOP / "requirements.txt").read_text(), re.M))
    inline = set(re.findall(r'"([\w-]+==[\d.]+)', text.split("# ///")[1]))
    assert inline <= pinned and {name.split("==")[0] for name in inline} >= packages


def test_top_level_holds_the_scripts_two_folders_and_two_files():
    names = {path.name for path in TOP.iterdir() if not re.search(r"^\.|\.pt$|\.tmp$|__pycache__", path.name)}
    scripts = {f"{script}.py" for script in SCRIPTS}
    assert names == scripts | {"tests", "demos", "requirements.txt", "README.md"}
