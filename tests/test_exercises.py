"""demos/exercise.py judges answers rightly; demos/trace.py shows what happens in an update."""
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demos import exercise, record, trace

TOP = Path(__file__).parent.parent
SCRIPTS = ("dqn", "ppo", "pofd", "sac")
EPSILON = "np.where(np.random.rand(config.num_envs) < epsilon, random_action, agent.act(obs))"
LERP = "target.data.lerp_(source.data, config.tau)"
GAE = "    return advantage\n"
BATCH = "[x[reset == 0] for x in (obs, action, log_prob, advantage, advantage + value)]"
SURROGATE = "torch.min(ratio * advantage, clipped_ratio * advantage)"

RIGHT = [  # script, what stands there, what may stand there as well
    ("dqn", LERP, "target.data += config.tau * (source.data - target.data)"),
    ("dqn", EPSILON, "agent.act(obs)\n        explores = np.random.random(len(obs)) < epsilon\n"
     "        action[explores] = np.random.choice(envs.single_action_space.n, explores.sum())"),
    ("ppo", SURROGATE, "torch.where(advantage > 0, ratio.clamp(max=1 + clip_coef) * advantage,"
     "ratio.clamp(min=1 - clip_coef) * advantage)"),
    ("pofd", "softplus(-logits.detach())", "logsigmoid(logits).detach().neg()"),
    ("sac", "u = gaussian.rsample()", "u = mean + gaussian.stddev * torch.randn_like(mean)"),
    ("sac", "-log_alpha.exp() * (log_prob.detach() + target_entropy).mean()",
     "(-log_alpha.exp() * log_prob.detach() - log_alpha.exp() * target_entropy).mean()")]

WRONG = [  # script, exercise, what stands there, a mistake, the case that shows it, what is said
    ("dqn", 1, "loss(q_value, target)", "loss(q_value, target).item()", "one tr", "got a float"),
    ("dqn", 1, ".unsqueeze(1)).squeeze(1)", ".unsqueeze(1))", "two transitions", "loss: expected"),
    ("dqn", 1, "with torch.no_grad():\n        next", "if True:\n        next", "one transition",
     "gradient of target_network.factor: expected nothing"),
    ("dqn", 2, "rand(config", "default_rng().random(config", "epsilon 0.5", "same np.random.seed"),
    ("dqn", 2, "randint(envs", "default_rng(7).integers(envs", "epsilon 1", "another np.random.s"),
    ("dqn", 3, LERP, "target.lerp_(source, config.tau)", "tau 1", "a leaf Variable that"),
    ("ppo", 2, "(1 - done[t])", "(1 - terminated[t])", "an episode is truncated", "advantage"),
    ("ppo", 2, GAE, "    return advantage.numpy()\n", "one step", "torch.float32, got a nd"),
    ("ppo", 2, GAE, "    while True:\n        t = 0\n", "one step", "more than 3 seconds"),
    ("ppo", 2, GAE, "    exit()\n", "one step", "this line ends the program"),
    ("ppo", 2, "range(len(reward)", "range(T", "one step", "NameError: name 'T' is not defined"),
    ("ppo", 3, BATCH, "advantage", "one step", "advantage, target): expected 5, got 1"),
    ("ppo", 4, "1 - clip_coef, 1 + clip_coef", "0.8, 1.2", "ratio 1.5, advantage 2, cl", "loss"),
    ("ppo", 4, SURROGATE, "(clipped_ratio * advantage)", "ratio 1.5, advantage -2", "got 2.4"),
    ("pofd", 2, "-logits.detach()", "-logits", "D is undecided", "gradient of logits: expected"),
    ("pofd", 2, "softplus(-logits.detach())", "sigmoid(logits.detach()).log().neg()",
     "D is sure", "reward: expected (1,) [200], got (1,) [inf]"),
    ("sac", 1, "u = gaussian.rsample()", "u = gaussian.sample()", "mean 0.5", "gradient of obs"),
    ("sac", 4, "-log_alpha.exp() * (log", "-log_alpha * (log", "entropy 2", "loss: expected")]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs a program in an empty folder: its exit status and its output."""
    monkeypatch.chdir(tmp_path)

    def run(program, *argv):
        try:
            status = program.main([str(word) for word in argv])
        except SystemExit as error:
            status = error.code
        return status or 0, "".join(capsys.readouterr())
    return run


def fill(script, old="import argparse", new="import argparse  # für später", blank=0):
    """Write exercise_SCRIPT.py with the original's lines in all parts but `blank`, edited."""
    text = exercise.make_file(script)
    lines = (TOP / f"{script}.py").read_text("utf-8").splitlines()
    for i, part in enumerate(exercise.EXERCISES[script], 1):
        if i != blank:
            first, last = exercise.find_lines(lines, part)
            code = "\n".join(lines[first - 1:last]).lstrip()
            text = text.replace(f'raise NotImplementedError("exercise {i}")', code)
    assert text.count(old) == 1, f"exercise_{script}.py has `{old}` {text.count(old)} times"
    path = Path(f"exercise_{script}.py")
    path.write_text(text.replace(old, new), encoding="utf-8-sig")  # as editors do on Windows
    return path


@pytest.mark.parametrize("script", SCRIPTS)
def test_exercises_begin_blank_and_the_original_solves_them(script, run):
    parts = exercise.EXERCISES[script]
    assert run(exercise, f"{script}.py")[0] == 0
    status, output = run(exercise, "--check", f"exercise_{script}.py")
    assert status == 1 and output.count(" not yet\n") == output.count("\n") == len(parts)
    assert "exists already" in run(exercise, f"{script}.py")[1]
    status, output = run(exercise, "--check", fill(script))
    assert status == 0 and output.count(" right\n") == len(parts) and "All right." in output
    output = run(exercise, "--check", fill(script, blank=2))[1]
    assert output.count(" right\n") == len(parts) - 1 and output.count(" not yet\n") == 1


@pytest.mark.parametrize("script, old, new", RIGHT)
def test_a_right_answer_may_be_written_differently(script, old, new, run):
    status, output = run(exercise, "--check", fill(script, old, new))
    assert status == 0, output


@pytest.mark.parametrize("script, i, old, new, case, said", WRONG)
def test_a_wrong_answer_is_told_with_its_case(script, i, old, new, case, said, run, monkeypatch):
    monkeypatch.setattr(exercise, "SECONDS", 3)
    path = fill(script, old, new)
    status, output = run(exercise, "--check", path)
    assert status == 1 and output.count("wrong") == 1 and output.count(" right\n") > 1, output
    head = rf"^{i} .* wrong, see lines \d+ to \d+: {re.escape(case)}"
    text = re.search(rf"{head}.*(?:\n   .*)*", output, re.M)[0]
    assert said in text, output
    for number, line in re.findall(r"\n +line (\d+): (.*)", text):
        assert path.read_text("utf-8-sig").splitlines()[int(number) - 1].strip() == line


@pytest.mark.parametrize("old, new, said", [
    ("import argparse", "print(", "line 8\n"), ("import argparse", "exit()", "line 8: exit()\n"),
    ("# END OF EXERCISE 2", "", "expected a line `# EXERCISE 2:` and a line")])
def test_a_file_that_does_not_run_is_told(old, new, said, run):
    status, output = run(exercise, "--check", fill("dqn", old, new))
    assert said in f"{status}{output}"


@pytest.mark.parametrize("words, sentence", [
    ("nosuch.py", "nosuch.py: no such script, expected dqn.py, ppo.py, pofd.py or sac.py"),
    ("--check ppo.py", "--check and a file like exercise_dqn.py"),
    ("ppo.py --update 100000", "training ends after"),
    ("ppo.py --update 0", "expected --update from 1 to")])
def test_wrong_input_ends_with_a_sentence(words, sentence, run):
    program = trace if "--update" in words else exercise
    assert sentence in run(program, *words.split())[1].splitlines()[-1]


@pytest.fixture(scope="module", params=SCRIPTS)
def traced(request, tmp_path_factory):
    """A script, the page that trace.py makes of it, and the rows in it."""
    if request.param in ("pofd", "sac"):
        pytest.importorskip("pybullet")
    path = tmp_path_factory.mktemp("trace") / "page.html"
    trace.main([f"{request.param}.py", "--html", str(path)])
    data = re.search(r'<script type="application/json">(.*?)</script>', path.read_text("utf-8"))[1]
    return request.param, path, json.loads(data)["rows"]


def test_page_and_text_show_each_line_of_an_update_once(traced, run):
    script, _, rows = traced
    text, place = " ".join(run(trace, f"{script}.py")[1].split()), 0
    numbers = [row["number"] for row in rows if row["kind"] == "line"]
    assert len(numbers) == len(set(numbers)) > 20 and trace.LEGEND.split()[0] in text
    for words in "# Act", "envs.step(", "# Learn", "loss", ".backward(", "step() > norm of":
        place = text.index(words, place)
    for row in rows:
        notes = [f"{mark} {name} {shape} = {value}" for mark, name, shape, value in row["notes"]]
        assert all(" ".join(words.split()) in text for words in (row["text"], *notes))
    assert "evaluate(" not in text


def test_ppo_is_shown_where_it_clips(run):
    ratio, clipped = map(json.loads, re.findall(r"ratio \(4,\) = (.*)", run(trace, "ppo.py")[1]))
    assert ratio != clipped == [min(max(x, 0.8), 1.2) for x in ratio]


def test_being_watched_changes_nothing(run):
    module, rows = record.load_script(TOP / "dqn.py"), []
    flags = ["--seed", "3", "--total-timesteps", "6"]
    module.main(record.make_config(module, flags, **trace.SMALL), rows.append)
    output = run(trace, "dqn.py", *flags, "--update", "3")[1]
    assert "total_timesteps = 6" in output and "> step = 4" in output
    loss = float(re.search(r"> \w*loss = (\S+)", output)[1])
    assert loss == pytest.approx(rows[-1]["td_loss"], rel=1e-3)


def test_files_are_read_and_written_as_utf8(run):
    fill("ppo")
    code = ("from demos import exercise, trace; exercise.main(['dqn.py']);"
            "trace.main(['ppo.py', '--html', 'x']); exercise.main(['--check', 'exercise_ppo.py'])")
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not re.search("demos/.*EncodingWarning", done.stderr)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_page_in_a_browser(traced, tmp_path):
    _, path, rows = traced
    width = "<script>document.title = document.documentElement.scrollWidth</script></html>"
    (tmp_path / "page.html").write_text(path.read_text("utf-8").replace("</html>", width), "utf-8")
    command = "chromium --headless --no-sandbox --disable-gpu --dump-dom --window-size=390,800"
    command = [*command.split(), f"--user-data-dir={tmp_path}/profile", f"{tmp_path}/page.html"]
    dom = subprocess.run(command, capture_output=True, text=True).stdout
    assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= 500, "chromium's least width"
    body = html.unescape(re.sub(r"<[^>]*>|\s", "", dom[dom.index("<main>"):]))
    for words in [x for row in rows for x in (row["text"], *(note[3] for note in row["notes"]))]:
        assert re.sub(r"\s", "", words) in body
    assert 'id="act"' in dom and 'href="#learn"' in dom
