"""demos/trace.py: short, true to the source, and enough to check the losses by hand."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

TOP = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("demo_trace", TOP / "demos" / "trace.py")
trace = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trace)
SCRIPTS = ("dqn", "ppo", "pofd", "sac")
outputs = {}


def traced(capsys, script, *flags):
    """What `trace.py script flags` prints, once for each."""
    key = (script, *flags)
    if key not in outputs:
        trace.main([f"{script}.py", *flags])
        outputs[key] = capsys.readouterr().out
    return outputs[key]


def look_up(text, known, shape):
    """The latest value of a name, or of a part of it, that fits; a function's names may hide its caller's."""
    if text in known:
        return next(value for value in reversed(known[text]) if value.size == np.prod(shape, dtype=int))
    for i in range(1, 9):
        names = {name: history[-min(i, len(history))] for name, history in known.items()}
        value = eval(text, {}, names)
        if value.size == np.prod(shape, dtype=int):
            return value
    raise AssertionError(f"{text} of shape {shape} was not printed")


def values(output):
    """[(name, array or number)] as printed and in that order, "= other" looked up."""
    rows = []
    for line in output.splitlines()[3:]:
        if re.match(r"[ \d]{3}\d ", line) or re.match(r"(< |> |in )", line.lstrip()):
            rows.append(line.strip())
        else:  # wrapped
            rows[-1] += " " + line.strip()
    entries, known, summarised = [], {}, set()
    for item in re.split(r"(?:   |\n)(?=[<>] |in \w+:)", "\n".join(rows)):
        item = item.split("\n")[0].removeprefix("< ").removeprefix("> ")
        match = re.fullmatch(r"([\w.()\[\]:+\-' ]+?)(?:: (\([\d, ]*\))(?: (\w+))?)? = (.*)", item)
        if not match:
            continue
        name, shape, dtype, text = match.groups()
        if "min " in text or text in summarised:
            summarised.add(name)
            continue
        if re.match(r"[\w.()]+(\[.*\])?$", text) and re.match("[a-z]", text) and text not in ("nan", "inf"):
            value = look_up(text, known, eval(shape))
        else:
            try:
                value = np.array(eval(text, {"nan": np.nan, "inf": np.inf}))
            except Exception:
                continue
        if shape:
            value = np.reshape(value, eval(shape)).astype(dtype or "float32")
        known.setdefault(name, []).append(value)
        entries.append((name, value))
    return entries


def last(entries, name, shape=None):
    found = [value for key, value in entries if key == name and (shape is None or value.shape == shape)]
    assert found, f"{name} {shape} is not among {[key for key, _ in entries]}"
    return found[-1]


def until(entries, name):
    """The entries up to the last one of a name."""
    return entries[: max(i for i, (key, _) in enumerate(entries) if key == name) + 1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_and_every_line_is_one_of_the_script(script, capsys):
    lines = traced(capsys, script).splitlines()
    source = (TOP / f"{script}.py").read_text().splitlines()
    assert len(lines) < 120, len(lines)
    assert max(map(len, lines[1:])) <= trace.WIDTH
    numbered = [re.match(r" *(\d+) +(.*)", line) for line in lines[3:]]
    shown = [(int(match[1]), match[2]) for match in numbered if match]
    assert len(shown) > 35
    for number, text in shown:
        assert text.startswith(source[number - 1].strip())
    assert len({number for number, _ in shown}) == len(shown), "a line is shown twice"


@pytest.mark.parametrize(
    "script, path",
    [
        ("dqn", ["envs.step", "buffer.add", "buffer.sample", "td_loss", ".backward", ".step()", "lerp_"]),
        ("ppo", ["envs.step", "gae(", "clipped_surrogate(", ".backward", "optimizer.step"]),
        ("pofd", ["envs.step", "imitation_reward(", "gae(", "clipped_surrogate(", "discriminator_loss("]),
        ("sac", ["envs.step", "buffer.add", "critic_loss(", ".step()", "actor_loss(", "temperature_loss("]),
    ],
)  # fmt: skip
def test_the_path_is_in_the_order_of_execution(script, path, capsys):
    output, place = traced(capsys, script), 0
    for step in path:
        place = output.find(step, place)
        assert place >= 0, step
    assert re.search(r"gradient norms of \w+ = \w", output) and re.search(
        r"norms of the change of agent = ", output
    )
    assert "pybullet" not in output and "argv" not in output


def test_dqn_loss_by_hand(capsys):
    entries = values(traced(capsys, "dqn"))
    reward, terminated = last(entries, "batch.reward"), last(entries, "batch.terminated")
    gamma, next_q = last(entries, "config.gamma"), last(entries, "next_q")
    target = reward + gamma * (1 - terminated) * next_q.max(1)
    error = np.abs(last(entries, "q_value") - target)
    huber = np.where(error < 1, error**2 / 2, error - 0.5)
    assert len(huber) == 4 and huber.mean() == pytest.approx(last(entries, "loss"), rel=0.01)


@pytest.mark.parametrize("script", ["ppo", "pofd"])
def test_ppo_loss_by_hand(script, capsys):
    entries = values(traced(capsys, script))
    names = ("config.gamma", "config.gae_lambda", "config.vf_coef", "config.ent_coef")
    gamma, gae_lambda, vf_coef, ent_coef = (last(entries, name) for name in names)
    rollout = until(entries, "next_value")
    next_value = last(rollout, "next_value")
    shape = next_value.shape
    reward, value = last(rollout, "reward", shape), last(rollout, "value", shape)
    terminated, done = (last(entries, name, shape) for name in ("terminated", "done"))
    advantage, following = np.zeros(shape), 0
    for t in reversed(range(shape[0])):
        delta = reward[t] + gamma * (1 - terminated[t]) * next_value[t] - value[t]
        following = advantage[t] = delta + gamma * gae_lambda * (1 - done[t]) * following
    normalised = (advantage - advantage.mean()) / advantage.std()  # no episode ended: all are learned from
    ratio = np.exp(last(entries, "log_prob") - last(entries, "old_log_prob"))
    assert ratio == pytest.approx(1) and advantage.ravel().std() > 0
    policy_loss, value_loss = -(ratio * normalised.ravel()).mean(), (advantage**2).mean()
    assert value_loss == pytest.approx(last(entries, "value_loss"), rel=0.01)
    loss = policy_loss + vf_coef * value_loss - ent_coef * last(entries, "entropy")
    assert loss == pytest.approx(last(until(entries, "grad_norm"), "loss"), rel=0.01, abs=1e-5)


def test_discriminator_loss_by_hand(capsys):
    entries = values(traced(capsys, "pofd"))
    agent, demo = last(entries, "agent_logits"), last(entries, "demo_logits")
    loss = np.log1p(np.exp(-agent)).mean() + np.log1p(np.exp(demo)).mean()
    assert loss == pytest.approx(last(entries, "d_loss"), rel=0.001)
    imitation, reward = last(entries, "imitation"), last(entries, "r")
    scaled = [value for name, value in entries if name == "r"][0]
    assert reward == pytest.approx(scaled + last(entries, "config.reward_lambda") * imitation, rel=0.001)


def test_sac_losses_by_hand(capsys):
    entries = values(traced(capsys, "sac"))
    before = until(entries, "q_loss")
    keep_on = 1 - last(before, "batch.terminated")
    target = last(before, "batch.reward") + last(before, "config.gamma") * keep_on * last(
        before, "next_value"
    )
    both = ((last(before, "forward()") - target) ** 2).mean(1)
    assert both.shape == (2,) and both.sum() == pytest.approx(last(before, "q_loss"), rel=0.01)
    before = until(entries, "policy_loss")
    lowest = last(before, "forward()").min(0)
    actor_loss = (last(before, "alpha") * last(before, "log_prob") - lowest).mean()
    assert actor_loss == pytest.approx(last(before, "policy_loss"), rel=0.01)


def test_flags_reach_the_script_and_loops_are_counted(capsys):
    output = traced(capsys, "dqn", "--gamma", "0.5", "--double", "--learning-starts", "18", "--updates", "2")
    entries = values(output)
    assert last(entries, "config.gamma") == 0.5 and "double = True" in output
    assert re.search(r"for step in .*\n? *< 11 rounds", output) and last(entries, "updates") == 2
    assert values(traced(capsys, "dqn")) and "config.gamma = 0.5" not in traced(capsys, "dqn")


def test_being_watched_changes_nothing(capsys, monkeypatch):
    printed = last(values(traced(capsys, "dqn")), "loss")
    module, td_loss, losses = trace.load_script("dqn"), trace.load_script("dqn").td_loss, []

    def spy(*args, **kwargs):
        losses.append(td_loss(*args, **kwargs))
        raise InterruptedError

    monkeypatch.setattr(module, "td_loss", spy)
    small = {key: value for key, value in trace.SMALL.items() if hasattr(module.Config, key)}
    with pytest.raises(InterruptedError):
        module.train(module.Config(**small), report=lambda row: None)
    assert losses[0].item() == pytest.approx(printed, rel=1e-4)


def test_numbers():
    array = np.array([[12.34567, -1e-9], [0.1, np.nan]], np.float32)
    assert trace.describe("x", array) == [("x", "(2, 2)", "[[12.346, 0], [0.1, nan]]", array.ctypes.data)]
    (entry,) = trace.describe("x", np.arange(100.0))
    assert entry[1:3] == ("(100,) float64", "min 0, mean 49.5, max 99")
    assert trace.describe("x", 0.1 + 0.2)[0].text == "0.3" and trace.describe("x", np)[:1] == []


@pytest.mark.parametrize(
    "argv",
    [
        ["nosuch.py"],
        ["tests/probes.py"],
        ["dqn.py", "--gamma", "2"],
        ["dqn.py", "--no-such-flag"],
        ["dqn.py", "--updates", "0"],
        ["dqn.py", "--total-timesteps", "4"],
        ["dqn.py", "--load", "nosuch.pt"],
    ],
)
def test_wrong_input_gets_one_line_and_status_2(argv, capsys, monkeypatch):
    monkeypatch.chdir(TOP)
    with pytest.raises(SystemExit) as status:
        trace.main(argv)
    output = capsys.readouterr()
    assert status.value.code == 2 and not output.out
    assert re.fullmatch(r"\w+\.py: error: .+\n", output.err)
