"""demos/exercise.py judges answers rightly, demos/trace.py shows an update as it is."""
import ast
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from demos import exercise, record, trace

TOP = Path(__file__).parent.parent
SCRIPTS = ("dqn", "ppo", "pofd", "sac")
LOOP = "for t in reversed(range(len(reward) - 1)):"
GAE_END = "    return advantage\n    # END OF EXERCISE 2"
EPSILON = "np.where(np.random.rand(config.num_envs) < epsilon, random_action, agent.act(obs))"
LERP = "target.data.lerp_(source.data, config.tau)"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs a program in an empty folder. It returns the exit status and the output."""
    monkeypatch.chdir(tmp_path)

    def run(program, *argv):
        try:
            status = program.main([str(word) for word in argv])
        except SystemExit as error:
            status = error.code
        return status or 0, "".join(capsys.readouterr())
    return run


def fill(script, *edits, blank=()):
    """Write exercise_SCRIPT.py with the original's lines in all parts not `blank`, then edit it."""
    text = exercise.make_file(script)
    lines = (TOP / f"{script}.py").read_text("utf-8").splitlines()
    for i, part in enumerate(exercise.EXERCISES[script], 1):
        if i not in blank:
            first, last = exercise.find_lines(lines, part)
            code = "\n".join(lines[first - 1:last]).lstrip()
            text = text.replace(f'raise NotImplementedError("exercise {i}")', code)
    for old, new in edits:
        assert text.count(old) == 1, f"exercise_{script}.py has `{old}` {text.count(old)} times"
        text = text.replace(old, new)
    Path(f"exercise_{script}.py").write_text(text, encoding="utf-8")
    return f"exercise_{script}.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_exercises_begin_blank_and_the_original_solves_them(script, run):
    parts = exercise.EXERCISES[script]
    assert run(exercise, f"{script}.py")[0] == 0
    status, output = run(exercise, "--check", f"exercise_{script}.py")
    assert status == 1 and output.count(" not yet\n") == output.count("\n") == len(parts)
    assert "exists already" in run(exercise, f"{script}.py")[1]
    status, output = run(exercise, "--check", fill(script))
    assert status == 0 and output.count(" right\n") == len(parts) and "All right." in output


def test_parts_are_checked_one_by_one(run):
    output = run(exercise, "--check", fill("ppo", blank=(1, 3)))[1]
    assert re.findall("right|not yet", output) == ["not yet", "right", "not yet", "right"]


@pytest.mark.parametrize("script, old, new", [
    ("dqn", "import argparse", "import argparse\nOWN = 1  # für später"),
    ("dqn", "config.tau)", "1 - (1 - config.tau))"),
    ("dqn", LERP, "target.data += config.tau * (source.data - target.data)"),
    ("dqn", LERP, "with torch.no_grad():\n                target.mul_(1 - config.tau)\n"
     "                target.add_(config.tau * source)"),
    ("dqn", EPSILON, "agent.act(obs)\n        explores = np.random.random(len(obs)) < epsilon\n"
     "        action[explores] = random_action[explores]"),
    ("ppo", "Independent(Normal(self.actor(obs), self.log_std.exp()), 1)",
     "torch.distributions.MultivariateNormal(self.actor(obs), self.log_std.mul(2).exp().diag())"),
    ("ppo", f"    {LOOP}\n", "    for t in range(len(reward) - 2, -1, -1):\n"),
    ("ppo", GAE_END, "    return torch.stack(list(advantage))\n    # END OF EXERCISE 2"),
    ("ppo", "return [x[reset == 0] for x", "return [x[~reset.bool()].clone() for x"),
    ("ppo", "torch.min(ratio * advantage, clipped_ratio * advantage).mean()",
     "torch.where(advantage > 0, ratio.clamp(max=1 + clip_coef) * advantage,\n"
     "                        ratio.clamp(min=1 - clip_coef) * advantage).mean()"),
    ("pofd", "softplus(-logits.detach())", "logsigmoid(logits).detach().neg()"),
    ("pofd", "reward += reward_lambda", "reward = reward + reward_lambda"),
    ("sac", "u = gaussian.rsample()", "u = mean + gaussian.stddev * torch.randn_like(mean)"),
    ("sac", "next_q = target_critics(batch.next_obs, next_action).amin(0)",
     "next_q = torch.min(*target_critics(batch.next_obs, next_action))"),
    ("sac", "-log_alpha.exp() * (log_prob.detach() + target_entropy).mean()",
     "(-log_alpha.exp() * log_prob.detach() - log_alpha.exp() * target_entropy).mean()")])
def test_a_right_answer_may_be_written_differently(script, old, new, run):
    status, output = run(exercise, "--check", fill(script, (old, new)))
    assert status == 0, output


@pytest.mark.parametrize("script, i, old, new, case, said", [
    ("dqn", 1, "loss(q_value, target)\n    # END OF EXERCISE 1", "loss(q_value, target).item()\n"
     "    # END OF EXERCISE 1", "one transition", "loss: expected a Tensor torch.float32, got a float"),
    ("dqn", 2, EPSILON, "random_action", "epsilon 0", "action: expected (2,) [0, 2], got (2,) [0, 1]"),
    ("dqn", 2, "np.random.rand(config.num_envs) <", "np.random.rand() <", "epsilon 0.5", "fraction of"),
    ("dqn", 2, "np.random.rand(config", "np.random.default_rng().random(config", "epsilon 0.5", "same np.random.seed"),
    ("dqn", 2, "np.random.randint(envs", "np.random.default_rng(7).integers(envs", "epsilon 1", "another np"),
    ("dqn", 2, "np.random.rand(config.num_envs)", "torch.rand(config.num_envs).numpy()", "epsilon 0.5", "same"),
    ("dqn", 2, "        action = np", "        actions = np", "epsilon 0", "got nothing"),
    ("dqn", 3, LERP, "target.lerp_(source, config.tau)", "tau 1", "a leaf Variable that requires grad"),
    ("dqn", 3, LERP, "source.data.lerp_(target.data, config.tau)", "tau 1", "target_network.factor: expected"),
    ("ppo", 1, "self.log_std.exp()", "self.log_std", "one action", "standard deviation: expected"),
    ("ppo", 1, "Independent(Normal(self.actor(obs), self.log_std.exp()), 1)",
     "Normal(self.actor(obs), self.log_std.exp())", "one action of size 1", "entropy: expected (1,)"),
    ("ppo", 2, "gae_lambda * (1 - done[t])", "gae_lambda * (1 - terminated[t])", "an episode is truncated", "adv"),
    ("ppo", 2, "(1 - terminated) *", "(1 - done) *", "an episode is truncated", "advantage: expected"),
    ("ppo", 2, "gamma * gae_lambda *", "gamma * 0.95 *", "two steps", "advantage: expected (2, 1)"),
    ("ppo", 2, GAE_END, GAE_END.replace("advantage", "advantage.numpy()", 1), "one step", "got a ndarray float32"),
    ("ppo", 2, GAE_END, GAE_END.replace("advantage", "advantage.double()", 1), "one step", "got a Tensor torch.float64"),
    ("ppo", 2, GAE_END, "    while True:\n        t = 0\n    # END OF EXERCISE 2", "one step", "line 97: while True"),
    ("ppo", 2, GAE_END, "    exit()\n" + GAE_END, "one step", "line 97: exit()"),
    ("ppo", 2, LOOP, LOOP.replace("len(reward)", "T"), "one step", "NameError: name 'T' is not defined"),
    ("ppo", 3, "log_prob, advantage, advantage + value)]", "log_prob, advantage, advantage)]", "one step", "target"),
    ("ppo", 3, "return [x[reset == 0] for x in (obs, action, log_prob, advantage, advantage + value)]",
     "return advantage", "one step", "number of results (obs, action, log_prob, advantage, target): expected 5, got 1"),
    ("ppo", 3, "[x[reset == 0]", "[x[reset >= 0]", "an episode is truncated", "obs: expected (2, 1)"),
    ("ppo", 3, "config.gamma, config.gae_lambda)", "0.99, config.gae_lambda)", "one step", "advantage"),
    ("ppo", 4, "1 - clip_coef, 1 + clip_coef", "1 - 0.2, 1 + 0.2", "ratio 1.5, advantage 2, clip_coef 0.3", "loss"),
    ("ppo", 4, "-torch.min(ratio", "torch.min(ratio", "ratio 1, advantage 2", "loss: expected -2, got 2"),
    ("ppo", 4, "torch.min(ratio * advantage, clipped_ratio * advantage)", "(clipped_ratio * advantage)",
     "ratio 1.5, advantage -2", "loss: expected 3, got 2.4"),
    ("pofd", 1, "softplus(-agent_logits)", "softplus(agent_logits)", "one pair each", "loss"),
    ("pofd", 2, "softplus(-logits.detach())", "softplus(-logits)", "D is undecided", "gradient of logits: expected nothing"),
    ("pofd", 2, "softplus(-logits.detach())", "sigmoid(logits.detach()).log().neg()", "D is sure", "got (1,) [inf]"),
    ("pofd", 3, "discriminator(obs, executed)", "discriminator(obs, action)", "a step without", "advantage"),
    ("sac", 1, "u = gaussian.rsample()", "u = gaussian.sample()", "mean 0.5", "gradient of obs"),
    ("sac", 1, "(gaussian.log_prob(u) - log_slope).sum(-1)", "gaussian.log_prob(u).sum(-1)", "mean 0.5", "log_prob"),
    ("sac", 1, "return u.tanh(), ", "return ", "mean 0.5", "expected 2, got 1"),
    ("sac", 2, "amin(0)  #", "amax(0)  #", "one transition", "loss"),
    ("sac", 2, "next_q - alpha *", "next_q - 0.5 *", "two transitions", "loss"),
    ("sac", 3, "critics(obs, action)", "critics(obs, action.detach())", "one action", "gradient of action"),
    ("sac", 4, "-log_alpha.exp() * (log", "-log_alpha * (log", "entropy 2", "loss: expected"),
    ("sac", 4, "log_prob.detach()", "log_prob", "entropy 2", "gradient of log_prob: expected nothing")])
def test_a_wrong_answer_is_told_with_its_case(script, i, old, new, case, said, run, monkeypatch):
    monkeypatch.setattr(exercise, "SECONDS", 3)
    path = fill(script, (old, new))
    status, output = run(exercise, "--check", path)
    assert status == 1 and output.count("wrong: ") == 1 and output.count(" right\n") > 1, output
    text = re.search(rf"^{i} .*wrong: {re.escape(case)}.*(?:\n   .*)*", output, re.M)[0]
    assert said in text and (" = " in text or not case), output
    for number, line in re.findall(r"\n +line (\d+): (.*)", text):
        assert Path(path).read_text("utf-8").splitlines()[int(number) - 1].strip() == line
