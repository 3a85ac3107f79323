"""POfD: the discriminator's loss and reward by hand, demonstration files, executed actions, and lambda."""

import hashlib
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from test_common import demonstrations

import pofd
import ppo

TOP = Path(__file__).parent.parent

TINY = dict(num_envs=4, num_steps=32, hidden_size=16, total_timesteps=512, discriminator_steps=3)
SINGLE = "InvertedPendulumPyBulletSparseEnv-v0"
BOX = pofd.gym.spaces.Box(-1, 1, (1,))


def quiet(row):
    """Report to nobody."""


def test_discriminator_loss_and_reward_by_hand():
    agent, demo = np.array([0.3, -1.2, 2.0]), np.array([-0.7, 0.4, 1.5])
    D = lambda logits: 1 / (1 + np.exp(-logits))  # noqa: E731
    expected = -np.log(D(agent)).mean() - np.log(1 - D(demo)).mean()  # agent = 1, demonstration = 0
    loss = pofd.discriminator_loss(torch.tensor(agent), torch.tensor(demo))
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-12)
    reward = pofd.imitation_reward(torch.tensor(agent, requires_grad=True))
    assert reward.numpy() == pytest.approx(-np.log(D(agent)), rel=1e-12) and not reward.requires_grad
    like_demo, like_agent = pofd.imitation_reward(torch.tensor([-3.0, 3.0]))
    assert like_demo > like_agent >= 0


def test_finite_at_large_logits():
    far = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = pofd.discriminator_loss(far, -far)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(far.grad).all()
    assert torch.isfinite(pofd.imitation_reward(far)).all()


def test_discriminator_sees_observations_on_the_demonstrations_scale():
    """Each column by its own mean and deviation, cut off at 10; actions as they are; D is 1/2 at first."""
    demo_obs = torch.tensor([[1.0, -300.0, 5.0], [3.0, 100.0, 5.0]])  # the last one never changes
    discriminator = pofd.Discriminator(demo_obs, torch.zeros(2, 1), 16)
    obs, action = torch.tensor([[4.0, -500.0, 5.0], [200.0, -5_000.0, 5.0]]), torch.tensor([[0.7], [-30.0]])
    assert discriminator(obs, action).shape == (2,)
    assert discriminator(obs, action).sigmoid().detach().numpy() == pytest.approx(np.full(2, 0.5), abs=0.05)
    discriminator.net = torch.nn.Identity()
    expected = [[2.0, -2.0, 0.0, 0.7], [10.0, -10.0, 0.0, -30.0]]
    assert discriminator(obs, action).numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_demonstrations_are_found_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for env_id in SINGLE, f"pofd:{SINGLE}":
        assert Path(pofd.Config(env_id).demo_path).samefile(TOP / "demos" / f"{SINGLE}.npz")
    assert pofd.Config(demo="x.npz").demo_path == "x.npz"


def write(path, **changes):
    rng = np.random.default_rng(0)
    arrays = dict(observations=rng.normal(size=(20, 5)), actions=rng.uniform(-2, 2, (20, 1)))
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_demonstrations_are_as_executed(tmp_path):
    observations, actions = pofd.load_demonstrations(write(tmp_path / "x.npz"), 5, BOX)
    assert observations.shape == (20, 5) and actions.shape == (20, 1)
    assert observations.dtype == actions.dtype == np.float32
    assert np.abs(actions).max() == 1  # those outside [-1, 1] are clipped, as the environment would


@pytest.mark.parametrize(
    "changes",
    [
        dict(observations=None),
        dict(actions=None),
        dict(observations=np.zeros((20, 4))),
        dict(actions=np.zeros((20, 2))),
        dict(actions=np.zeros(20)),
        dict(actions=np.zeros((19, 1))),
        dict(observations=np.zeros((0, 5)), actions=np.zeros((0, 1))),
        dict(observations=np.full((20, 5), np.nan)),
        dict(actions=np.full((20, 1), np.inf)),
        dict(observations=np.full((20, 5), None)),
        dict(observations=np.full((20, 5), "x")),
        dict(observations=np.zeros((20, 5), complex)),
    ],
)
def test_bad_demonstrations_get_one_line(changes, tmp_path, capsys):
    path = write(tmp_path / "x.npz", **changes)
    with pytest.raises(SystemExit) as exit_:
        pofd.main(["--demo", path])
    err = capsys.readouterr().err
    assert (
        exit_.value.code == 2
        and err.count("\n") == 1
        and err.startswith("pofd.py: error: ")
        and "x.npz" in err
    )


def test_cut_and_foreign_files_get_one_line(tmp_path, capsys):
    whole = open(write(tmp_path / "whole.npz"), "rb").read()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("cut.npz", "empty.npz", "text.npz", "nothing.npz"):
        with pytest.raises(SystemExit) as exit_:
            pofd.main(["--demo", str(tmp_path / name)])
        err = capsys.readouterr().err
        assert exit_.value.code == 2 and err.count("\n") == 1 and name in err


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


WHOLE = npz(
    observations=np.linspace(-1, 1, 100).reshape(20, 5), actions=np.linspace(-2, 2, 20).reshape(20, 1)
)


def check_loaded_or_refused(path, content):
    """Arrays that can be trained on, or a ValueError that names the file. Returns which."""
    path.write_bytes(content)
    try:
        observations, actions = pofd.load_demonstrations(str(path), 5, BOX)
    except ValueError as error:
        assert str(path) in str(error)
        return False
    assert observations.ndim == 2 and observations.shape[1:] == (5,) and len(observations) > 0
    assert actions.shape == (len(observations), 1)
    assert observations.dtype == actions.dtype == np.float32
    assert np.isfinite(observations).all() and (np.abs(actions) <= 1).all()
    return True


many = settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(
    edits=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, len(WHOLE)),
    whole=st.booleans(),
)
def test_thousand_mutated_files(edits, cut, whole, tmp_path_factory):
    """Bytes overwritten, the end cut off."""
    content = bytearray(WHOLE)
    for place, value in edits:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "mutated.npz"
    loaded = check_loaded_or_refused(path, bytes(content if whole else content[:cut]))
    assert loaded or edits or not whole


shapes = st.one_of(
    st.sampled_from([(3, 5), (3, 1), (0, 5), (0, 1), (), (5,), (1,)]),
    hnp.array_shapes(min_side=0, max_side=6),
)
dtypes = st.one_of(hnp.scalar_dtypes(), st.just(np.dtype("f8")), st.just(np.dtype("f4")))
arrays = hnp.arrays(dtypes, shapes)


@settings(many, max_examples=300)
@pytest.mark.filterwarnings("error")  # nor may NumPy print a warning of its own
@given(observations=arrays, actions=arrays)
def test_thousand_files_of_any_arrays(observations, actions, tmp_path_factory):
    """Any type, any shape, any number: NaN, infinities, 1e300, times, text."""
    path = tmp_path_factory.getbasetemp() / "any.npz"
    check_loaded_or_refused(path, npz(observations=observations, actions=actions))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300])
@pytest.mark.parametrize("key", ["observations", "actions"])
def test_one_bad_number_is_refused(key, value, tmp_path):
    arrays = dict(observations=np.zeros((20, 5)), actions=np.zeros((20, 1)))
    arrays[key][7, 0] = value
    assert not check_loaded_or_refused(tmp_path / "x.npz", npz(**arrays))


def test_pickles_are_refused_and_nothing_of_them_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    array = np.empty((20, 5), object)
    array[:] = Bomb()
    for content in (npz(observations=array, actions=np.zeros((20, 1))), array.dumps()):
        assert not check_loaded_or_refused(tmp_path / "x.npz", content)
    assert not (tmp_path / "ran").exists()


def test_reward_is_read_before_the_discriminator_learns(monkeypatch):
    order = []
    loss, reward = pofd.discriminator_loss, pofd.imitation_reward
    monkeypatch.setattr(pofd, "discriminator_loss", lambda *a: order.append("loss") or loss(*a))
    monkeypatch.setattr(pofd, "imitation_reward", lambda *a: order.append("reward") or reward(*a))
    pofd.train(pofd.Config(**TINY), report=quiet)
    assert order == (["reward"] + ["loss"] * 3) * 4


def test_reported_return_has_no_bonus():
    rows = []
    pofd.train(pofd.Config(**{**TINY, "total_timesteps": 1_024}, reward_lambda=5.0), report=rows.append)
    assert rows[-1]["return"] == 0.0  # no pole stands for 200 steps yet
    assert rows[-1]["imitation_reward"] > 0


def test_lambda_zero_does_not_look_at_the_demonstrations(tmp_path):
    weights = []
    for seed in (0, 1):
        path = write(tmp_path / f"{seed}.npz", observations=np.random.default_rng(seed).normal(size=(20, 5)))
        agent = pofd.train(pofd.Config(**TINY, reward_lambda=0.0, demo=path), report=quiet)
        weights.append(torch.cat([p.flatten() for p in agent.parameters()]))
    assert (weights[0] == weights[1]).all()


def test_lambda_zero_is_ppo_on_the_environments_reward():
    """The same weights as ppo.py, to the last bit."""
    same = {f.name for f in pofd.fields(ppo.Config)} & {f.name for f in pofd.fields(pofd.Config)}
    config = pofd.Config(**TINY, reward_lambda=0.0, reward_scale=0.1, ent_coef=0.1, restarts=0.0)
    theirs = ppo.Config(**{name: getattr(config, name) for name in same})
    a, b = (module.train(c, report=quiet) for module, c in ((pofd, config), (ppo, theirs)))
    assert all((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_agent_that_replays_the_demonstrations_cannot_be_told_from_them(monkeypatch):
    """Both sides are scaled alike and the executed action counts: D stays near 1/2, its loss near 2 log 2."""
    observations, actions = pofd.load_demonstrations(pofd.Config().demo_path, 5, BOX)
    losses, loss = [], pofd.discriminator_loss
    monkeypatch.setattr(pofd, "discriminator_loss", lambda *a: losses.append(loss(*a)) or losses[-1])
    index = np.random.default_rng(0).permutation(len(observations))[:1_024].reshape(-1, 4)

    class Replay(pofd.gym.vector.VectorEnv):
        num_envs, metadata = 4, {"autoreset_mode": pofd.gym.vector.AutoresetMode.NEXT_STEP}
        single_action_space, action_space = BOX, pofd.gym.vector.utils.batch_space(BOX, 4)
        observation_space = pofd.gym.vector.utils.batch_space(pofd.gym.spaces.Box(-np.inf, np.inf, (5,)), 4)
        t = 0

        def reset(self, **_):
            return observations[index[0]], {}

        def step(self, action):
            self.t += 1
            none = np.zeros(4, bool)
            return observations[index[self.t % len(index)]], np.zeros(4), none, none, {}

    envs = Replay()
    monkeypatch.setattr(pofd.gym, "make_vec", lambda *_, **__: envs)
    monkeypatch.setattr(
        pofd.ActorCritic, "act", lambda self, obs, greedy=True: 3 * actions[index[envs.t % len(index)]] / 3
    )
    settings = dict(num_envs=4, num_steps=64, total_timesteps=4_096, learning_rate=0.0)
    pofd.train(pofd.Config(**settings), report=quiet)
    assert np.mean([x.item() for x in losses[-50:]]) == pytest.approx(2 * np.log(2), abs=0.1)


@pytest.mark.parametrize("drawn, executed", [(3.0, 1.0), (-3.0, -1.0)])
def test_discriminator_sees_executed_actions(drawn, executed, monkeypatch):
    seen, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda pair, axis: seen.append(pair) or cat(pair, axis))
    act = pofd.ActorCritic.act
    monkeypatch.setattr(pofd.ActorCritic, "act", lambda self, obs, greedy: 0 * act(self, obs, greedy) + drawn)
    config = pofd.Config(**TINY)
    pofd.train(config, report=quiet)
    rollout, agent_, demo = seen[0], seen[1], seen[2]
    assert rollout[1].shape == (32, 4, 1) and len(agent_[1]) == len(demo[1]) == 256
    assert (rollout[1] == executed).all() and (agent_[1] == executed).all() and (demo[1] != executed).any()


def test_imitation_reward_is_added_lambda_times(monkeypatch):
    seen, gae = [], pofd.gae
    monkeypatch.setattr(pofd, "gae", lambda *a: seen.append(a[0].clone()) or gae(*a))
    settings = dict(env_id="probes:ConstantBox-v0", demo=demonstrations(2), reward_scale=0.5)
    settings |= dict(discriminator_learning_rate=0.0, reward_lambda=2.0)
    pofd.train(pofd.Config(**{**TINY, **settings}), report=quiet)
    paid = seen[0][::2]  # one step an episode, then a reset
    assert paid.dtype == torch.float32 and (paid > 0.5).all()
    assert paid.numpy() == pytest.approx(np.full(paid.shape, 0.5 + 2 * np.log(2)), abs=0.1)


def test_discriminator_learns_which_side_is_the_agent():
    torch.manual_seed(1)
    agent, demo = ((torch.randn(50, 3) + shift, torch.zeros(50, 1)) for shift in (1, -1))
    discriminator = pofd.Discriminator(*demo, 16)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    config, rng = pofd.Config(discriminator_steps=100), np.random.default_rng(1)
    loss = pofd.update_discriminator(discriminator, optimizer, *agent, *demo, rng, config)
    assert discriminator(*agent).mean() > 1 and discriminator(*demo).mean() < -1
    assert 0 < loss < np.log(2)  # half of that of a D that knows nothing


def starts(env_id, restarts, monkeypatch, steps=5, **settings):
    """Train on three rollouts of four environments: the observations acted on (3, T, N, obs_dim), what `gae`
    got in each, and the agent."""
    seen, gae = [], pofd.gae
    monkeypatch.setattr(pofd, "gae", lambda *a: seen.append(a) or gae(*a))
    config = dict(num_envs=4, num_steps=steps, total_timesteps=12 * steps, restarts=restarts, hidden_size=8)
    obs, act = [], pofd.ActorCritic.act
    monkeypatch.setattr(
        pofd.ActorCritic, "act", lambda self, o, greedy: obs.append(o.copy()) or act(self, o, greedy)
    )
    agent = pofd.train(pofd.Config(env_id, **config, **settings), report=quiet)
    assert len(seen) == 3
    return np.reshape(obs, (3, steps, 4, -1)), seen, agent


@pytest.mark.parametrize("restarts, count", [(0.0, 0), (0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_environments_starts_afresh_with_each_rollout(restarts, count, monkeypatch):
    obs, _, _ = starts("probes:EndlessBox-v0", restarts, monkeypatch, demo=demonstrations(2))
    for rollout in range(3):
        for env in range(4):
            first = 0 if env < count else 5 * rollout
            assert obs[rollout, :, env, 0].tolist() == list(range(first, first + 5)), (rollout, env)


def test_pendulums_start_afresh_one_by_one(monkeypatch):
    """The physics of those that go on is not touched."""
    obs, _, _ = starts(SINGLE, 0.5, monkeypatch)
    afresh = (obs[:, 0, :, :2] == 0).all(-1)  # the cart in the middle and at rest
    assert afresh.tolist() == [[True] * 4, [True, True, False, False], [True, True, False, False]]


def test_a_rollout_bootstraps_from_where_it_was_and_not_from_the_restart(monkeypatch):
    """Values of the last observation, before the environment starts afresh; nothing is marked as an end."""
    settings = dict(learning_rate=0.0, demo=demonstrations(2))
    _, seen, agent = starts("probes:EndlessBox-v0", 0.5, monkeypatch, **settings)
    for rollout, (_, value, next_value, terminated, done, *_) in enumerate(seen):
        first = torch.tensor([0.0, 0.0, 5.0, 5.0]) * torch.tensor([1, 1, rollout, rollout])
        for steps, values in (first, value[0]), (first + 5, next_value[-1]):
            expected = agent.critic(torch.stack([steps, torch.ones(4)], 1)).squeeze(1)
            assert torch.allclose(values, expected, atol=1e-6)
            assert len(set(steps.tolist())) == 1 + (rollout > 0)
        assert not terminated.any() and not done.any()


def test_reported_returns_are_of_whole_episodes_whatever_starts_afresh():
    """Lengths of 2 to 8 steps that pay 1 each; what a restart cuts off is no episode."""
    rows, T, N, restarted = [], 6, 4, 2
    settings = dict(num_envs=N, num_steps=T, total_timesteps=6 * N * T, hidden_size=8, seed=5, restarts=0.5)
    pofd.train(pofd.Config("probes:LengthsBox-v0", demo=demonstrations(2), **settings), report=rows.append)
    returns = []
    for env in range(N):
        rng = np.random.default_rng(5 + env)
        length, age, over = int(rng.integers(2, 9)), 0, False
        for step in range(6 * T):
            if step and step % T == 0 and env < restarted and not over:
                length, age = int(rng.integers(2, 9)), 0
            if over:
                length, age, over = int(rng.integers(2, 9)), 0, False
                continue
            age += 1
            if age == length:
                over = True
                returns.append(age)
    assert rows[-1]["episodes"] == len(returns) and rows[-1]["return"] == pytest.approx(np.mean(returns))


DOUBLE = dict(env_id="InvertedDoublePendulumPyBulletSparseEnv-v0")


@pytest.mark.learning
@pytest.mark.parametrize(
    "settings, solved, seed",
    [
        ({}, 475, 11),
        ({}, 475, 12),
        ({}, 475, 13),
        (DOUBLE, 950, 11),
        (DOUBLE, 950, 12),
    ],
)
def test_solves_the_sparse_pendulums(settings, solved, seed):
    config = pofd.Config(seed=seed, **settings)
    agent = pofd.train(config, report=quiet)
    assert pofd.evaluate(agent, config.env_id, 100, seed + 10_000).mean() >= solved


def load_record():
    spec = importlib.util.spec_from_file_location("record", TOP / "demos" / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record


def same_arrays(path, other):
    """Equal contents; the bytes differ, since a zip archive holds the time."""
    with np.load(path) as a, np.load(other) as b:
        assert sorted(a) == sorted(b) == ["actions", "observations", "rewards", "terminals", "timeouts"]
        return all(a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]) for key in a)


def test_mountain_car_demonstrations_are_what_record_makes(tmp_path):
    path = str(tmp_path / "x.npz")
    load_record().main(["swing", "-o", path])
    assert same_arrays(path, TOP / "demos" / "MountainCarContinuous-v0.npz")


@pytest.mark.parametrize(
    "steps, trained_on, recorded_on, noise, epsilon, seed, teacher",
    [
        (32_768, "InvertedPendulumPyBulletEnv-v0", SINGLE, 0.3, 0.6, 3, "6824b053a307d537"),
        (65_536, *["InvertedDoublePendulumPyBulletSparseEnv-v0"] * 2, 0.5, 0.18, 4, "f29cf0ef6e1357b8"),
    ],
)
def test_pendulum_demonstrations_are_what_record_makes(
    steps, trained_on, recorded_on, noise, epsilon, seed, teacher, tmp_path
):
    """The README's commands. A processor that rounds differently trains another `teacher` (a hash)."""
    model, path = str(tmp_path / "x.pt"), str(tmp_path / "x.npz")
    train = ["ppo.py", "--env-id", f"sac:{trained_on}", "--total-timesteps", str(steps)]
    train += ["--eval-frequency", "0", "--save", model]
    play = ["demos/record.py", "ppo.py", "--load", model, "--env-id", f"sac:{recorded_on}"]
    knobs = ["--noise", str(noise), "--epsilon", str(epsilon), "--seed", str(seed), "-o", path]
    for command in (train, play + knobs):
        subprocess.run([sys.executable, *command], cwd=TOP, check=True, capture_output=True)
    *_, weights = torch.load(model, weights_only=True).values()
    weights = b"".join(weight.numpy().tobytes() for weight in weights.values())
    if hashlib.sha256(weights).hexdigest()[:16] != teacher:
        pytest.skip("this processor rounds differently from the one that the demonstrations were made on")
    assert same_arrays(path, TOP / "demos" / f"{recorded_on}.npz")


@pytest.mark.parametrize(
    "env_id, low, high",
    [
        (SINGLE, 50, 150),
        ("InvertedDoublePendulumPyBulletSparseEnv-v0", 250, 400),
        ("MountainCarContinuous-v0", 90, 95),
    ],
)
def test_demonstrations_are_few_and_imperfect(env_id, low, high):
    with np.load(TOP / "demos" / f"{env_id}.npz", allow_pickle=False) as data:
        data = dict(data)
    kinds = dict(observations="f", actions="f", rewards="f", terminals="b", timeouts="b")
    assert {key: array.dtype.kind for key, array in data.items()} == kinds
    assert len({len(array) for array in data.values()}) == 1
    ends = data["terminals"] | data["timeouts"]
    assert ends.sum() == 5 and ends[-1] and low <= data["rewards"].sum() / 5 <= high


@pytest.mark.parametrize(
    "flags, named",
    [
        (["nothing.py", "--load", "x.pt"], "nothing"),
        (["ppo.py"], "ppo.py"),
        (["ppo.py", "--load", "nothing.pt"], "nothing.pt"),
        (["swing", "--episodes", "0"], "--episodes"),
        (["swing", "--noise", "nan"], "--noise"),
        (["swing", "--epsilon", "2"], "--epsilon"),
        (["swing", "--env-id", "Nothing-v0"], "Nothing"),
        (["swing", "--env-id", "CartPole-v1"], "swing"),
        (["swing", "-o", "/nowhere/x.npz"], "/nowhere/x.npz"),
    ],
)
def test_record_says_in_one_line_what_is_wrong(flags, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(TOP)
    with pytest.raises(SystemExit) as exit_:
        load_record().main(["-o", str(tmp_path / "x.npz"), *flags])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count("\n") == 1
    assert err.startswith("record.py: error: ") and named in err
    assert not list(tmp_path.iterdir())
