"""What all scripts promise: layout, flags, determinism, saving, and one line for bad input."""

import ast
import dataclasses
import functools
import hashlib
import importlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

TOP = Path(__file__).parent.parent


def demonstrations(obs_dim):
    """A file of random ones."""
    path = Path(tempfile.gettempdir()) / f"random_demonstrations_{os.getpid()}_{obs_dim}.npz"
    rng = np.random.default_rng(0)
    np.savez(path, observations=rng.normal(size=(50, obs_dim)), actions=rng.uniform(-1, 1, (50, 1)))
    return str(path)


# A run of a second or so: (settings, settings that must each change the outcome when changed alone).
TINY = {
    "dqn": (
        dict(total_timesteps=640, num_envs=4, hidden_size=16, batch_size=16, learning_starts=100,
             buffer_size=200, learning_rate=2e-2, train_frequency=4),
        dict(seed=2, total_timesteps=600, num_envs=8, hidden_size=8, learning_rate=1e-2, reward_scale=1.0,
             gamma=0.5, buffer_size=50, batch_size=8, learning_starts=200, train_frequency=8,
             target_network_frequency=3, tau=1.0, start_e=0.5, end_e=0.5, exploration_fraction=0.9,
             double=True, env_id="Acrobot-v1"),
    ),
    "ppo": (
        dict(total_timesteps=128, num_envs=4, num_steps=16, hidden_size=16),
        dict(seed=2, total_timesteps=192, num_envs=8, num_steps=8, hidden_size=8, learning_rate=1e-2,
             max_grad_norm=1e-2, gamma=0.5, gae_lambda=0.5, update_epochs=2, num_minibatches=4,
             clip_coef=1e-3, vf_coef=2.0, ent_coef=0.1, reward_scale=1.0,
             end_learning_rate=1.0, env_id="Acrobot-v1"),
    ),
    "pofd": (
        dict(total_timesteps=128, num_envs=4, num_steps=16, hidden_size=16, discriminator_steps=2,
             update_epochs=3, env_id="MountainCarContinuous-v0"),
        dict(seed=2, total_timesteps=192, num_envs=8, num_steps=8, hidden_size=8, learning_rate=1e-2,
             max_grad_norm=1e-2, gamma=0.5, gae_lambda=0.5, update_epochs=2, num_minibatches=3,
             clip_coef=1e-3, vf_coef=2.0, ent_coef=0.1, reward_scale=1.0, reward_lambda=0.0,
             restarts=0.0, end_learning_rate=1.0,
             discriminator_steps=5, discriminator_batch_size=32, discriminator_learning_rate=0.0,
             demo=demonstrations(2), env_id="InvertedPendulumPyBulletSparseEnv-v0"),
    ),
    "sac": (
        dict(total_timesteps=240, num_envs=4, hidden_size=16, batch_size=16, learning_starts=80,
             buffer_size=100),
        dict(seed=2, total_timesteps=200, num_envs=8, hidden_size=8, plain=True, learning_rate=1e-2,
             end_learning_rate=1.0, gamma=0.5, reward_scale=1.0, alpha=0.1, buffer_size=50, batch_size=8,
             learning_starts=120, train_frequency=8, policy_frequency=1, tau=1.0, averaging=0.0,
             noise_correlation=0.0, max_episode_steps=3, env_id="MountainCarContinuous-v0"),
    ),
}  # fmt: skip
LAST_MINIBATCH = ["policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"]
FIGURES = {  # of each row of the report, between those of the episodes and the seconds
    "dqn": ["td_loss", "epsilon"],
    "ppo": LAST_MINIBATCH,
    "pofd": [*LAST_MINIBATCH, "discriminator_loss", "imitation_reward"],
    "sac": ["critic_loss", "actor_loss", "alpha"],
}
SCRIPTS = sorted(TINY)
BOX_ONLY = ("sac", "pofd")
GATED = "dqn", "ppo"  # these look at greedy episodes only once the training episodes reach the goal
OTHER = {"dqn": "ppo", "ppo": "dqn", "sac": "dqn", "pofd": "dqn"}


def make(script, **settings):
    module = importlib.import_module(script)
    return module, module.Config(**{**TINY[script][0], **settings})


def weights(agent):
    return hashlib.sha256(
        b"".join(p.detach().cpu().numpy().tobytes() for p in agent.state_dict().values())
    ).hexdigest()


def train(script, **settings):
    module, config = make(script, **settings)
    return weights(module.train(config, report=lambda row: None))


def flags(script, **settings):
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in {**TINY[script][0], **settings}.items()
    ]


def run(script, argv, capsys):
    """Run `main` in this process: (exit status, standard output, standard error)."""
    try:
        importlib.import_module(script).main(argv)
        status = 0
    except SystemExit as exit_:
        status = exit_.code or 0
    output = capsys.readouterr()
    return status, output.out, output.err


def clock(module, monkeypatch, tick):
    """From now on `module` reads a clock that goes on by `tick` seconds at each look."""
    looks = itertools.count(100.0, tick)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: next(looks)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_layout(script):
    text = (TOP / f"{script}.py").read_text()
    tree = ast.parse(text)
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    pybullet = {"pybullet", "pybullet_data", "pybullet_utils"} if script in BOX_ONLY else set()
    assert imported <= set(sys.stdlib_module_names) | {"torch", "gymnasium", "numpy"} | pybullet
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    for line in text.splitlines():
        assert len(line) <= 120 and not line.rstrip().endswith(";"), line
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)", (TOP / "requirements.txt").read_text(), re.M))
    inline = dict(re.findall(r'"(\w+)==([\d.]+)', re.search(r"# dependencies = (.*)", text).group(1)))
    assert inline == {name: pinned[name] for name in inline} and set(inline) >= {
        "torch",
        "gymnasium",
        "numpy",
    }
    assert f"python {script}.py" in ast.get_docstring(tree)


@pytest.mark.skipif(not shutil.which("git"), reason="git tells what belongs to the project")
def test_top_level_holds_what_the_readme_says():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {"dqn.py", "ppo.py", "pofd.py", "sac.py", "tests", "demos", "requirements.txt", "README.md"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_same_seed_same_bits(script, tmp_path):
    """Twice in this process, and in one that is started as a user would: quiet, apart from the figures."""
    path, (module, config) = tmp_path / "agent.pt", make(script)
    argv = [sys.executable, str(TOP / f"{script}.py"), *flags(script), "--save", str(path)]
    other = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert other.returncode == 0 and "argv" not in other.stdout + other.stderr
    assert all(re.match(rf"step |{script}\.py |pybullet build", line) for line in other.stdout.splitlines())
    saved = torch.load(path, weights_only=True)[f"{script}.py {config.env_id}"]
    agent = module.train(config, report=lambda row: None)
    assert all(torch.equal(saved[name], value) for name, value in agent.state_dict().items())
    assert train(script) == weights(agent)
    assert config == make(script)[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_first_weights_do_not_depend_on_threads(script):
    """LAPACK, behind orthogonal initialisation, rounds differently on two threads."""
    module = importlib.import_module(script)
    network = getattr(module, {"dqn": "QNetwork", "sac": "Actor"}.get(script, "ActorCritic"))
    torch.set_num_threads(2)
    first = weights(network(module.Config()))
    torch.set_num_threads(1)
    assert weights(network(module.Config())) == first


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_changes_the_outcome(script):
    module, config = make(script)
    changed = TINY[script][1]
    elsewhere = {"device", "eval_episodes", "eval_frequency"}
    assert {field.name for field in dataclasses.fields(config)} == set(changed) | elsewhere
    base = train(script)
    assert train(script) == base
    for name, value in changed.items():
        assert train(script, **{name: value}) != base, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_reaches_its_setting(script, monkeypatch):
    module, base = make(script)
    seen = []

    class Reached(Exception):
        pass

    def stop(config, *args, **kwargs):
        seen.append(config)
        raise Reached

    monkeypatch.setattr(module, "train", stop)
    for name, value in {**TINY[script][1], "eval_episodes": 7, "eval_frequency": 9}.items():
        with pytest.raises(Reached):
            module.main(flags(script, **{name: value}))
        assert seen.pop() == dataclasses.replace(base, **{name: value})
    with pytest.raises(Reached):
        module.main([])
    assert seen.pop() == module.Config()


SHARES = (
    "gamma gae_lambda tau averaging start_e end_e exploration_fraction end_learning_rate noise_correlation "
    "restarts"
)
LIMITS = dict.fromkeys(SHARES.split(), (0.0, 1.0)) | {"alpha": (1e-30, np.inf)}
LIMITS |= dict.fromkeys(("seed", "learning_starts", "max_episode_steps", "eval_frequency"), (0, np.inf))
LIMITS |= {"num_minibatches": (1, 60)}  # half of 6 steps of 20 environments


@pytest.mark.parametrize("script", SCRIPTS)
def test_limits_of_every_setting(script):
    """Accepted up to each limit, refused past it, and refused by name; counts begin at 1, amounts at 0."""
    Config, rollout = importlib.import_module(script).Config, {}
    if script in ("ppo", "pofd"):
        rollout = {"num_envs": 20, "num_steps": 7, "num_minibatches": 1}
    for field in dataclasses.fields(Config):
        if field.type in (int, float):
            low, high = LIMITS.get(field.name, (int(field.type is int), np.inf))
            least = 2 if field.name == "num_steps" else low  # every other step can be a reset
            for value in {least, min(high, 10**9)}:
                assert getattr(Config(**{**rollout, field.name: value}), field.name) == value
            for value in (np.nextafter(low, -np.inf), np.nextafter(high, np.inf), low - 1, high + 1, np.nan):
                if not low <= value <= high:
                    with pytest.raises(ValueError, match=f"^{field.name} is {value}, expected "):
                        Config(**{**rollout, field.name: value})


@pytest.mark.parametrize("script", SCRIPTS)
def test_config_is_frozen(script):
    _, config = make(script)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_save_then_load_evaluates_the_same(script, capsys, tmp_path):
    path = tmp_path / "agent.pt"
    config = make(script)[1]
    asked, loop = config.total_timesteps + 1, config.num_envs * getattr(config, "num_steps", 1)
    argv = [*flags(script, seed=5, total_timesteps=asked), "--save", str(path)]
    status, trained, _ = run(script, argv, capsys)
    assert status == 0 and [p.name for p in tmp_path.iterdir()] == ["agent.pt"]
    status, loaded, _ = run(script, ["--load", str(path)], capsys)
    assert status == 0
    closing = re.compile(
        rf"{script}\.py (\S+) seed 5: return (-?[\d.]+) \+- ([\d.]+) \(min (-?[\d.]+)\) over (\d+) "
        r"episodes, ([\d,]+) steps, ([\d.]+) s$"
    )
    first, second = closing.match(trained.splitlines()[-1]), closing.match(loaded.splitlines()[-1])
    assert first and second and first.groups()[:6] == second.groups()[:6]
    assert int(first[6].replace(",", "")) == -(-asked // loop) * loop  # those that were made
    assert len(loaded.splitlines()) == 1 and "step" in trained.splitlines()[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_rows_of_the_report(script):
    module, config = make(script)
    rows = []
    module.train(config, report=rows.append)
    last = rows[-1]
    assert last["step"] >= config.total_timesteps and last["episodes"] >= 0 and last["seconds"] > 0
    assert all(isinstance(value, (int, float)) for value in last.values())
    assert list(last) == ["step", "episodes", "return", *FIGURES[script], "seconds"]


def stopping(script, monkeypatch, returns, greedy, reward_threshold, **settings):
    """Steps until training ends, and at which steps `evaluate` was called, on a probe whose every step is an
    episode: with these latest `returns`, of training, and these returns of greedy episodes."""
    name, looks, rows = f"Constant{'Box' * (script in BOX_ONLY)}-v0", [], []
    settings |= {"demo": demonstrations(2), "restarts": 0.0} if script == "pofd" else {}
    settings = {"total_timesteps": 192, "eval_frequency": 64, "eval_episodes": 7, "seed": 3, **settings}
    module, config = make(script, env_id=f"probes:{name}", **settings)

    class Recorder(gym.wrappers.vector.RecordEpisodeStatistics):
        def step(self, actions):
            result = super().step(actions)
            self.return_queue.extend(returns)
            return result

    def evaluate(agent, env_id, episodes, seed):
        assert (env_id, episodes) == (config.env_id, 7)
        looks.append(seed - 20_003)
        return np.array(greedy)

    importlib.import_module("probes")
    with monkeypatch.context() as patch:
        patch.setattr(gym.spec(name), "reward_threshold", reward_threshold)
        patch.setattr(gym.wrappers.vector, "RecordEpisodeStatistics", Recorder)
        patch.setattr(module, "evaluate", evaluate)
        agent = module.train(config, report=rows.append)
    assert rows[-1]["step"] == agent.steps
    return agent.steps, looks


@pytest.mark.parametrize("script", SCRIPTS)
def test_training_ends_when_solved(script, monkeypatch):
    """When greedy episodes reach the threshold, by their mean less their standard deviation; where training
    episodes can reach it too, only once as many of the latest as there are environments (4) average it."""
    stop, returns = functools.partial(stopping, script, monkeypatch), [0.0, 9.0, 1.0, 2.0, 3.0]
    assert stop(returns, [4.0, 2.0], 2.0) == (64, [64])
    assert stop(returns, [4.0, 1.9], 2.0) == (192, [64, 128, 192])
    first = 80 if script in ("dqn", "sac") else 128  # the end of a rollout
    assert stop(returns, [4.0, 1.9], 2.0, eval_frequency=80)[1][0] == first
    assert stop(returns, [4.0], 3.75) == (64, [64])
    assert stop(returns, [4.0], 3.76) == ((192, []) if script in GATED else (64, [64]))
    assert stop(returns, [4.0], 2.0, eval_frequency=0) == stop(returns, [4.0], None) == (192, [])


@pytest.mark.parametrize("script", SCRIPTS)
def test_reports_about_once_a_second_and_at_the_end(script, monkeypatch):
    """Half a second between two looks at the clock: more than one second is every third look."""
    settings = {"total_timesteps": 640, "update_epochs": 1} if script in ("ppo", "pofd") else {}
    (module, config), rows = make(script, **settings), []
    clock(module, monkeypatch, 0.5)
    module.train(config, report=rows.append)
    loop = config.num_envs * getattr(config, "num_steps", 1)
    third, end = 3 * loop, config.total_timesteps
    assert [row["step"] for row in rows] == [*range(third, end, third), end]
    assert [row["seconds"] for row in rows] == [0.5 * row["step"] / loop for row in rows]


@pytest.mark.parametrize("script", SCRIPTS)
def test_reported_return_is_the_mean_of_whole_episodes(script):
    """Lengths: 2 to 8 steps that pay 1 each, whatever the scale for learning; no episode yet: NaN."""
    last = {}
    for name in "Lengths", "Endless":
        settings = {"env_id": f"probes:{name}{'Box' * (script in BOX_ONLY)}-v0", "total_timesteps": 192}
        settings |= {"demo": demonstrations(2), "restarts": 0.0} if script == "pofd" else {}
        module, config = make(script, **settings, seed=5, reward_scale=0.5)
        module.train(config, report=lambda row, name=name: last.update({name: row}))
    returns, steps = [], 192 // config.num_envs
    for env in range(config.num_envs):
        rng, now = np.random.default_rng(5 + env), -1  # a reset, the first one too, takes a step
        while (now := now + 1 + (length := int(rng.integers(2, 9)))) <= steps:
            returns.append(length)
    assert len(returns) < 100  # the mean is over the last hundred
    assert last["Lengths"]["episodes"] == len(returns)
    assert last["Lengths"]["return"] == pytest.approx(np.mean(returns))
    assert last["Endless"]["episodes"] == 0 and np.isnan(last["Endless"]["return"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_progress_is_one_line_at_once(script, monkeypatch):
    """Counts in full, other numbers to three digits; flushed, so that it is seen through a pipe, too."""

    class Pipe(io.StringIO):
        through = ""

        def flush(self):
            self.through = self.getvalue()

    monkeypatch.setattr(sys, "stdout", Pipe())
    importlib.import_module(script).print_progress({"step": 12_345, "return": 1.23456, "loss": -1e-7})
    assert sys.stdout.through == "step 12,345  return 1.23  loss -1e-07\n"


@pytest.mark.parametrize("script", ["ppo", "pofd"])
def test_figures_are_those_of_the_last_minibatch(script, monkeypatch):
    module, config = make(script, learning_rate=0.05, ent_coef=0.1)
    rows, seen, surrogate, mse = [], [], module.clipped_surrogate, torch.nn.functional.mse_loss
    monkeypatch.setattr(
        module, "clipped_surrogate", lambda *args: seen.append([*args, surrogate(*args)]) or seen[-1][-1]
    )
    monkeypatch.setattr(
        torch.nn.functional, "mse_loss", lambda *args: seen[-1].append(mse(*args)) or seen[-1][-1]
    )
    module.train(config, report=rows.append)
    log_prob, old_log_prob, _, clip_coef, policy_loss, value_loss = seen[-1]
    log_ratio = (log_prob - old_log_prob).detach().double().numpy()
    ratio = np.exp(log_ratio)
    expected = {"policy_loss": policy_loss.item(), "value_loss": value_loss.item()}
    expected["approx_kl"] = np.mean(ratio - 1 - log_ratio)
    expected["clip_fraction"] = np.mean(abs(ratio - 1) > config.clip_coef)
    assert {name: rows[-1][name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert (
        clip_coef == config.clip_coef and 0 < expected["clip_fraction"] < 1 and expected["approx_kl"] > 1e-3
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluate_counts_one_episode_each(script):
    """Episodes of 2 to 8 steps that pay 1 each, by the seed; even ones terminate, odd ones are truncated."""
    env_id = f"probes:Lengths{'Box' * (script in BOX_ONLY)}-v0"
    module, config = make(script, env_id=env_id, total_timesteps=4)
    network = {"dqn": "QNetwork", "sac": "Actor"}.get(script, "ActorCritic")
    returns = module.evaluate(getattr(module, network)(config), env_id, 30, seed=7)
    lengths = [np.random.default_rng(7 + i).integers(2, 9) for i in range(30)]
    assert returns.tolist() == lengths and len(set(lengths)) == 7


NETWORKS = {"dqn": "QNetwork", "ppo": "ActorCritic", "pofd": "ActorCritic", "sac": "Actor"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_learns_acts(script, monkeypatch):
    """One network acts throughout: the agent returned or, in sac.py, the one that it averages."""
    module, config = make(script)
    network = getattr(module, NETWORKS[script])
    agent, act, acted = network(config), network.act, []
    monkeypatch.setattr(
        network, "act", lambda self, *args, **options: acted.append(self) or act(self, *args, **options)
    )
    assert module.train(config, report=lambda row: None, agent=agent) is agent
    assert acted and all(one is acted[0] for one in acted) and (acted[0] is agent) == (script != "sac")


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluation_is_of_fresh_episodes(script, monkeypatch, capsys, tmp_path):
    module, seen = importlib.import_module(script), []
    monkeypatch.chdir(tmp_path)
    clock(module, monkeypatch, 2.5)
    monkeypatch.setattr(module, "train", lambda *_, **__: None)
    monkeypatch.setattr(module, "evaluate", lambda *args: seen.append(args[1:]) or np.array([1.0, 4.0]))
    status, out, _ = run(script, flags(script, seed=3), capsys)
    env_id = make(script)[1].env_id
    assert status == 0 and seen == [(env_id, 20 if script in ("pofd", "sac") else 100, 10_003)]
    assert out.startswith(f"{script}.py {env_id} seed 3: return 2.5 +- 1.5 (min 1) over 2 episodes, ")
    assert out.endswith(" steps, 2.5 s\n") and out.count("\n") == 1
    assert not list(tmp_path.iterdir())  # without --save nothing is written


@pytest.mark.parametrize("script", SCRIPTS)
def test_save_takes_a_bare_file_name(script, monkeypatch, tmp_path, capsys):
    module = importlib.import_module(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "train", lambda *_, **__: None)
    monkeypatch.setattr(module, "evaluate", lambda *_: np.zeros(2))
    assert run(script, [*flags(script), "--save", "agent.pt"], capsys)[0] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["agent.pt"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_and_its_default(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(script, ["--help"], capsys)
    text = " ".join(out.split())
    assert status == 0 and err == "" and text.startswith("options: -h")
    for field in dataclasses.fields(importlib.import_module(script).Config):
        value = "" if field.type is bool else field.name.upper()
        line = f"--{field.name.replace('_', '-')} {value} default: {field.default}".split()
        assert " ".join(line) + " --" in text
    assert "--save SAVE file for weights" in text and "--load LOAD such a file: evaluate it" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_control_c_saves_and_evaluates_nothing(script, monkeypatch, capsys, tmp_path):
    module = importlib.import_module(script)

    def interrupt(config, agent):
        next(agent.parameters()).data.fill_(7.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupt)
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("evaluation started"))
    argv = [*flags(script), "--save", str(tmp_path / "agent.pt")]
    assert run(script, argv, capsys) == (130, "", "")
    saved = torch.load(tmp_path / "agent.pt", weights_only=True)
    key = f"{script}.py {make(script)[1].env_id}"
    assert any((value == 7).all() for value in saved[key].values())
    assert saved["config"] == dataclasses.asdict(make(script)[1])


@pytest.mark.parametrize("script", SCRIPTS)
def test_learning_rate_is_annealed(script, monkeypatch):
    rates, step = {}, torch.optim.Adam.step

    def spy(self, *args):
        rates.setdefault(id(self), []).append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    if script in ("dqn", "sac"):  # one gradient step a vector step
        settings, moments = {"learning_starts": 40, "train_frequency": 4}, range(44, 193, 4)
    else:
        settings, moments = {"update_epochs": 2, "num_minibatches": 3}, np.repeat([0, 64, 128], 6)
    train(script, total_timesteps=192, learning_rate=0.01, **settings)
    end = getattr(make(script)[1], "end_learning_rate", 0)
    first = [0.01 * max(end, 1 - now / 192) for now in moments]
    assert next(iter(rates.values())) == pytest.approx(first)
    if script == "sac":  # actor and temperature, on every second update
        assert list(rates.values())[1] == pytest.approx(first[1::2])


@pytest.mark.parametrize("script", ["ppo", "pofd"])
def test_resets_are_not_learned_from(script, monkeypatch):
    """Three steps an episode, then a reset; rollouts of three steps, so that some begin with the reset."""
    module, sizes = importlib.import_module(script), []
    surrogate = module.clipped_surrogate
    monkeypatch.setattr(
        module, "clipped_surrogate", lambda *args: sizes.append(len(args[0])) or surrogate(*args)
    )
    settings = dict(num_envs=2, num_steps=3, total_timesteps=24, update_epochs=1, num_minibatches=1)
    settings |= dict(env_id="probes:AlternatingBox-v0") | (
        dict(demo=demonstrations(2), restarts=0.0) if script == "pofd" else {}
    )
    train(script, **settings)
    assert sizes == [6, 4, 4, 4]


@pytest.mark.parametrize("script", ["ppo", "pofd"])
def test_networks_begin_orthogonal_and_the_policy_near_its_middle(script):
    module = importlib.import_module(script)
    agent = module.ActorCritic(make(script, env_id="MountainCarContinuous-v0", hidden_size=64)[1])
    for net, last in (agent.actor, 0.01), (agent.critic, 1.0):
        for layer, gain in zip(net[::2], (2**0.5, 2**0.5, last)):
            weight = layer.weight if len(layer.weight) <= layer.weight.shape[1] else layer.weight.T
            assert torch.allclose(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5)
            assert (layer.bias == 0).all()
    assert (agent.log_std == 0).all()


@pytest.mark.parametrize("script", ["ppo", "pofd"])
@pytest.mark.parametrize("mean, bound", [(-100.0, -2.0), (100.0, 6.0)])
def test_greedy_actions_are_clipped_and_drawn_ones_are_not(script, mean, bound):
    module, config = make(script, env_id="probes:WideBox-v0")  # actions in [-2, 6]
    agent = module.ActorCritic(config)
    agent.actor[-1].bias.data.fill_(mean)
    assert (agent.act(np.zeros((5, 2))) == np.full((5, 1), bound, np.float32)).all()
    drawn = agent.act(np.zeros((5, 2)), greedy=False)
    assert drawn.dtype == np.float32 and drawn.shape == (5, 1) and (np.abs(drawn - mean) < 10).all()


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluate_returns_one_number_an_episode(script):
    module, config = make(script)
    agent = module.train(config, report=lambda row: None)
    one, again, other = (module.evaluate(agent, config.env_id, 7, seed) for seed in (1, 1, 2))
    assert one.shape == (7,) and (one == again).all() and isinstance(one, np.ndarray)
    assert (module.evaluate(agent, config.env_id, 3, 1).shape) == (3,) and other.shape == (7,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("script", SCRIPTS)
def test_device_cuda(script, capsys, tmp_path, monkeypatch):
    """All that is learned from is there; same seed, same bits; what was saved is evaluated there and here."""
    module, config = make(script, device="cuda")
    loss, seen = {"dqn": "td_loss", "sac": "critic_loss"}.get(script, "clipped_surrogate"), set()
    compute = getattr(module, loss)

    def spy(*args, **options):
        value = compute(*args, **options)
        tensors = [x for arg in args for x in (arg if isinstance(arg, tuple) else [arg])]
        seen.update(x.device.type for x in [*tensors, value] if torch.is_tensor(x))
        return value

    monkeypatch.setattr(module, loss, spy)
    agent = module.train(config, report=lambda row: None)
    assert seen == {"cuda"} and all(value.is_cuda for value in agent.state_dict().values())
    path = tmp_path / "agent.pt"
    status, trained, _ = run(script, [*flags(script, device="cuda"), "--save", str(path)], capsys)
    saved = torch.load(path, "cpu", weights_only=True)[f"{script}.py {config.env_id}"]
    assert status == 0 and all(torch.equal(saved[k], v.cpu()) for k, v in agent.state_dict().items())
    closing = trained.splitlines()[-1].split(" over ")[0]
    for device in [], ["--device", "cpu"]:
        status, loaded, _ = run(script, ["--load", str(path), *device], capsys)
        assert status == 0 and loaded.split(" over ")[0] == closing


def bad_input(script):
    box = script in BOX_ONLY
    yield from (
        ["--gamma", "1.5"],
        ["--gamma", "-0.1"],
        ["--gamma", "nan"],
        ["--gamma", "x"],
        ["--num-envs", "0"],
        ["--total-timesteps", "-5"],
        ["--total-timesteps", "1e4"],
        ["--hidden-size", "0"],
        ["--seed", "-1"],
        ["--learning-rate", "-1"],
        ["--no-such-flag"],
        ["--device", "abacus"],
        ["--env-id", "NoSuchEnv-v0"],
        ["--env-id", "nosuchmodule:Env-v0"],
        ["--env-id", ""],
        ["--env-id", "a:b:c"],
        ["--env-id", "probes:Image-v0"],
        ["--env-id", "probes:DictObservation-v0"],
        ["--env-id", "probes:DiscreteObservation-v0"],
        ["--env-id", "probes:MultiDiscreteAction-v0"],
        ["--env-id", "probes:MatrixAction-v0"],
        ["--env-id", "CartPole-v1" if box else "probes:DiscreteFromOne-v0"],
        ["--save", "no/such/folder/x.pt"],
        ["--save", "."],
        ["--load", "nosuchfile.pt"],
        ["--load", "."],
    )
    if not torch.cuda.is_available():
        yield ["--device", "cuda"]
    if script == "sac":
        yield ["--env-id", "probes:UnboundedAction-v0"]
    if script == "dqn":
        yield from (
            ["--env-id", "Pendulum-v1"],
            ["--tau", "2"],
            ["--end-e", "-1"],
            ["--batch-size", "0"],
            ["--buffer-size", "0"],
            ["--train-frequency", "0"],
            ["--target-network-frequency", "0"],
        )
    if script == "ppo":
        yield from (["--num-minibatches", "0"], ["--gae-lambda", "1.01"], ["--update-epochs", "0"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_input_gets_one_line_and_status_2(script, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.import_module(script), "train", lambda *_, **__: pytest.fail("training started")
    )
    for argv in bad_input(script):
        status, out, err = run(script, argv, capsys)
        lines = [line for line in err.splitlines() if "Warn" not in line and "logger.warn" not in line]
        assert status == 2 and out == "" and ("checkpoint" in err) == ("--load" in argv), argv
        assert "probes:" not in argv[-1] or f"error: {argv[1]} has " in err and ", expected " in err, err
        assert len(lines) == 1 and lines[0].startswith(f"{script}.py: error: ") and len(lines[0]) > 25, (
            argv,
            err,
        )
    assert list(tmp_path.iterdir()) == []
    line = f"{script}.py: error: gamma is 1.5, expected 0 to 1\n"
    assert run(script, ["--gamma", "1.5"], capsys) == (2, "", line)


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoints_that_are_none(script, capsys, tmp_path, monkeypatch):
    module, config = make(script)
    good, ran = tmp_path / "good.pt", tmp_path / "ran"
    run(script, [*flags(script), "--save", str(good)], capsys)
    data = good.read_bytes()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("not a checkpoint\n" * 10)
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    content = torch.load(good, weights_only=True)
    key = next(key for key in content if key != "config")
    torch.save(
        {"config": content["config"], key.replace(script, OTHER[script]): content[key]},
        tmp_path / "script.pt",
    )
    torch.save({**content, "config": {**content["config"], "hidden_size": 3}}, tmp_path / "size.pt")
    torch.save({**content, "config": {**content["config"], "colour": 3}}, tmp_path / "field.pt")
    torch.save({**content, "config": {**content["config"], "gamma": 3.0}}, tmp_path / "gamma.pt")
    for name in ("cut", "empty", "text", "evil", "list", "script", "size", "field", "gamma"):
        status, out, err = run(script, ["--load", str(tmp_path / f"{name}.pt")], capsys)
        assert (status, out) == (2, "") and err.count("\n") == 1 and f"{name}.pt" in err, (name, err)
    other = TINY[script][1]["env_id"]
    status, out, err = run(script, ["--load", str(good), "--env-id", other], capsys)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "good.pt" in err
    assert not ran.exists()
    assert good.read_bytes() == data


@pytest.mark.parametrize("script", SCRIPTS)
def test_nan_observation_ends_the_run(script, capsys, tmp_path):
    path = tmp_path / "agent.pt"
    path.write_bytes(b"what was there before")
    settings = {"env_id": "probes:BrokenBox-v0" if script in BOX_ONLY else "probes:Broken-v0"}
    settings |= {"demo": demonstrations(2)} if script == "pofd" else {}
    status, out, err = run(script, [*flags(script, **settings), "--save", str(path)], capsys)
    assert (
        status == 1
        and err.count("\n") == 1
        and err.startswith(f"{script}.py: error: ")
        and "observation" in err
    )
    assert path.read_bytes() == b"what was there before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_exploding_loss_ends_the_run(script, capsys, tmp_path):
    path = tmp_path / "agent.pt"
    path.write_bytes(b"what was there before")
    argv = [*flags(script, learning_rate=1e30, total_timesteps=4_000), "--save", str(path)]
    status, out, err = run(script, argv, capsys)
    assert status == 1 and err.count("\n") == 1 and "not finite" in err and "loss" in err
    assert path.read_bytes() == b"what was there before" and len(list(tmp_path.iterdir())) == 1
