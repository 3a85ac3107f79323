"""demos/exercise.py judges answers rightly: what a script's own functions do is right."""
import re
from pathlib import Path

import pytest
from demos import exercise

from tiny import SCRIPTS, TOP

GAE = "    return advantage\n"
SURROGATE = "torch.min(ratio * advantage, clipped_ratio * advantage)"
LOG = "-nn.LogSigmoid()(logits.detach())"

RIGHT = [  # script, what stands there, what may stand there as well
    ("ppo", SURROGATE, "torch.where(advantage > 0, ratio.clamp(max=1 + clip_coef) * advantage,"
     "ratio.clamp(min=1 - clip_coef) * advantage)"),
    ("pofd", LOG, "nn.functional.softplus(-logits).detach()"),
    ("sac", "torch.randn_like(mean)", "torch.distributions.Normal(0 * mean, 1).rsample()"),
    ("sac", "(log_prob.detach() + target_entropy).mean()",
     "log_prob.detach().mean() - log_alpha.exp() * target_entropy")]

WRONG = [  # script, what stands there, a mistake, the case that shows it, what is said
    ("dqn", ".unsqueeze(1)).squeeze(1)", ".unsqueeze(1))", "two transitions", "loss: expected"),
    ("ppo", "(1 - done[t])", "(1 - terminated[t])", "an episode is truncated", "advantage: expe"),
    ("ppo", GAE, "    return advantage.numpy()\n", "one step", "got array("),
    ("ppo", GAE, "    while True:\n        t = 0\n", "one step", "takes more than 3 seconds"),
    ("ppo", "1 - clip_coef, 1 + clip_coef", "0.8, 1.2", "ratio 1.5, advantage 2, cl", "loss: exp"),
    ("pofd", LOG, "-nn.LogSigmoid()(logits)", "D is undecided", "gradient of logits: exp"),
    ("pofd", LOG, "-logits.detach().sigmoid().log()", "D is sure", "got tensor([inf])"),
    ("sac", "return u.tanh(), ", "return ", "mean 0.5", "number of results: expected 2, got 1"),
    ("sac", "log_std.exp() * noise", "log_std.exp().detach() * noise", "mean 0.5", "gradient of"),
    ("sac", ".clamp(-5, 2)", "", "log std 3", "log_prob: expected"),
    ("sac", "-log_alpha.exp() * (log", "-log_alpha * (log", "entropy 2", "loss: expected")]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs exercise.py in an empty folder: its exit status and its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exercise, "SECONDS", 3)

    def run(*argv):
        try:
            status = exercise.main([str(word) for word in argv])
        except SystemExit as error:
            status = error.code
        return status, "".join(capsys.readouterr())
    return run


def answer(script, old="import argparse", new="import argparse  # für später"):
    """Write exercise_SCRIPT.py, the script itself as an answer to all its exercises, edited."""
    text = (TOP / f"{script}.py").read_text(encoding="utf-8")
    assert text.count(old) == 1, f"adapt tests/test_exercises.py: {script}.py has no `{old}`"
    path = Path(f"exercise_{script}.py")
    path.write_text(text.replace(old, new), encoding="utf-8-sig")  # as editors do on Windows
    return path


@pytest.mark.parametrize("script", SCRIPTS)
def test_exercises_begin_blank_and_the_original_solves_them(script, run):
    parts, code = exercise.EXERCISES[script], (TOP / f"{script}.py").read_text(encoding="utf-8")
    for name in [part["function"].split(".")[-1] for part in parts]:
        assert f"def {name}(" in code, f"adapt exercises.json: {script}.py has no function {name}"
    assert run(f"{script}.py")[0] is None
    blank = Path(f"exercise_{script}.py").read_text(encoding="utf-8")
    assert blank.count("raise NotImplementedError") == blank.count("# EXERCISE: ") == len(parts)
    status, output = run("--check", f"exercise_{script}.py")
    assert status and output.count(" not yet\n") == output.count("\n") == len(parts)
    assert "exists already" in run(f"{script}.py")[1]
    status, output = run("--check", answer(script))
    assert not status and output.count(" right\n") == len(parts)


@pytest.mark.parametrize("script, old, new", RIGHT)
def test_a_right_answer_may_be_written_differently(script, old, new, run):
    status, output = run("--check", answer(script, old, new))
    assert not status, output


@pytest.mark.parametrize("script, old, new, case, said", WRONG)
def test_a_wrong_answer_is_told_with_its_case(script, old, new, case, said, run):
    path = answer(script, old, new)
    status, output = run("--check", path)
    assert status and output.count("wrong") == 1, output
    assert f"wrong: {case}" in output and said in output, output
    for number, line in re.findall(r"\n +line (\d+): (.*)", output):
        assert path.read_text("utf-8-sig").splitlines()[int(number) - 1].strip() == line


@pytest.mark.parametrize("words, said", [
    ("--check ppo.py", "--check exercise_ppo.py"), ("--check exercise_ppo.py", "no such script"),
    ("--check exercise_dqn.py", "does not run: File"), ("--check exercise_sac.py", "it ends the")])
def test_a_file_that_cannot_be_checked_is_told(words, said, run):
    answer("dqn", "import argparse", "print(")
    answer("sac", "import argparse", "exit()")
    status, output = run(*words.split())
    assert status and said in f"{status}{output}"
