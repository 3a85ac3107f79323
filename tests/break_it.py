"""What is each part of a script there for? Take it away, train what is left, and see.

`python tests/break_it.py` trains each script on its default task with one change at a time. Some changes undo
departures from the papers, which have to earn their place; others are faults made on purpose. Runs end when
solved, unless that is what is changed. benchmark.py trains the scripts as they are, and has the same flags.
"""
from typing import NamedTuple

import benchmark


class Change(NamedTuple):
    """One change of a script."""
    script: str
    name: str
    lesson: str = ""  # what it teaches, or what a departure is for, in one sentence
    edits: tuple = ()  # pairs: text of the script, what stands there instead
    settings: dict = {}
    kept: bool = True  # a departure that the script has is taken away, one that it has not is added
    task: str = ""  # by default the script's own

    def base(self):
        """The script as it is."""
        return benchmark.TASKS[self.task] if self.task else benchmark.DEFAULTS[self.script]

    def experiment(self, table, seeds):
        """The script with the change."""
        return self.base()._replace(
            table=table, name=f"{self.script}.py: {self.name}{self.task.replace('pofd/', ', ')}", seeds=seeds,
            settings={**self.base().settings, **self.settings}, edits=self.edits)


END = (("                break\n", "                pass\n"),)
NORMALISATION = "                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)\n"
BACKWARD = "                loss.backward()\n"
CLIP = "                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)\n"
RATE = """        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.total_timesteps)
"""
LEARN = "        # Learn, then let"
ROLLOUT = "        rollout = []\n"
TARGETS = "    target_critics = copy.deepcopy(critics)\n"

DEPARTURES = [
    Change("dqn", "LayerNorm",
           "It keeps the inputs of a layer in one range, so that large steps of Adam do no harm.",
           ((" nn.LayerNorm(hidden),", ""),)),
    Change("dqn", "Polyak averaging",
           "The target network follows a little at every step; the paper copies it, here every 500 steps.",
           (("            target.data.lerp_(source.data, config.tau)\n",
             "            if step // config.num_envs % 500 == 0:\n"
             "                target.data.copy_(source.data)\n"),)),
    Change("dqn", "environments side by side",
           "One call of the network acts in all of them, and the replay buffer is varied sooner.",
           ((LEARN, f"        if step % 16:\n            continue\n{LEARN}"),), dict(num_envs=1)),
    Change("dqn", "ending when solved",
           "DQN often loses a good policy again, so training stops while it has one.", END),
    Change("dqn", "learning rate falls to zero", "Small steps at the end do less harm.",
           ((LEARN, RATE + LEARN),), kept=False),
    Change("ppo", "advantage normalisation", "The unit of reward does not matter to the size of a step.",
           ((NORMALISATION, ""),)),
    Change("ppo", "ending when solved", "Training stops while the policy is good.", END),
    Change("ppo", "gradient clipping", "A long gradient is shortened.",
           ((BACKWARD, BACKWARD + CLIP),), kept=False),
    Change("ppo", "learning rate falls to zero", "Small steps at the end do less harm.",
           ((ROLLOUT, RATE + ROLLOUT),), kept=False),
    Change("ppo", "Adam's epsilon 1e-5", "Steps become small where gradients are.",
           (("lr=config.learning_rate,", "lr=config.learning_rate, eps=1e-5,"),), kept=False),
    Change("pofd", "reward scale",
           "A value function that starts near zero is sooner at small returns; lambda is scaled as well.",
           settings=dict(reward_scale=1.0, reward_lambda=1.0), task="pofd/double"),
    Change("pofd", "cut episodes",
           "A good policy's episodes hardly end; cut ones bring fresh starts, which teach the rest.",
           settings=dict(max_episode_steps=1000), task="pofd/double"),
    Change("pofd", "observations on the demonstrations' scale", "Each input of a network is about as large.",
           (("agent.scale[:] = torch.as_tensor(np.array([mean, std])[:, :obs.shape[1]])",
             "agent.scale[0] = 0"),), task="pofd/mountain car"),
    Change("pofd", "advantage normalisation", "As in ppo.py.", ((NORMALISATION, ""),)),
    Change("pofd", "gradient clipping", "As in ppo.py.",
           (("(loss + d_loss).backward()", f"(loss + d_loss).backward()\n{CLIP}"),), kept=False,
           task="pofd/double"),
    Change("sac", "reward scale", "Critics that start near zero are sooner at small returns.",
           (("config.hidden_size, alpha=0.2)", "config.hidden_size, alpha=0.003)"),
            ("(obs, action, reward, next_obs", "(obs, action, 0.015 * reward, next_obs")), kept=False),
    Change("sac", "cut episodes", "As in pofd.py.", settings=dict(max_episode_steps=1000)),
    Change("sac", "environments side by side", "As in dqn.py.",
           ((LEARN, f"        if step % 4:\n            continue\n{LEARN}"),), dict(num_envs=1)),
    Change("sac", "ending when solved", "Training stops while the policy is good.", END),
    Change("sac", "averaged actor", "The average of many actors does not follow the errors of one critic.",
           ((TARGETS, f"{TARGETS}    average = copy.deepcopy(agent)\n"),
            ("zip(target_critics.parameters(), critics.parameters())",
             "zip([*target_critics.parameters(), *average.parameters()],"
             " [*critics.parameters(), *agent.parameters()])"),
            ("evaluate(agent, config", "evaluate(average, config"),
            ("    return agent\n", "    return average\n")), kept=False),
]

SWAPPED = "next_obs, reward, terminated, truncated, _ =", "next_obs, reward, truncated, terminated, _ ="
FALL, TIME, SWAP, RESET = (
    "If bootstrapping goes on after a failure, failing costs nothing.",
    "No observation shows the clock, so that states alike are worth much or nothing.",
    "Failing costs nothing, and the time limit is taken for failure.",
    "A step that only resets leads from the end of an episode to a fresh start, out of any failure.",
)

BROKEN = [
    Change("dqn", "no target network", "A target that moves with every step of Q is hard to reach.",
           settings=dict(tau=1.0)),
    Change("dqn", "no replay", "What no environment does at the moment is forgotten.",
           settings=dict(buffer_size=16)),
    Change("dqn", "no exploration", "Q learns of the actions that it prefers, and of no others.",
           settings=dict(end_e=0.0, exploration_fraction=1e-6)),
    Change("dqn", "half the horizon", "In 50 steps, which is one second, a cart that drifts does not fall.",
           settings=dict(gamma=0.98)),
    Change("dqn", "termination ignored", FALL,
           (("gamma * (1 - batch.terminated.float()) * next_value", "gamma * next_value"),)),
    Change("dqn", "time limit taken for failure", TIME,
           (("reward, next_obs, terminated))", "reward, next_obs, terminated | truncated))"),)),
    Change("dqn", "terminated and truncated swapped", SWAP, (SWAPPED,)),
    Change("dqn", "the reset step learned from", RESET, (("[~done]", ""),)),
    Change("ppo", "no clipping", "Ten passes over one rollout take the policy far from the one that acted.",
           settings=dict(clip_coef=1e6)),
    Change("ppo", "one-step value target", "Bootstrapping on V alone, a reward travels one step a rollout.",
           (("advantage, advantage + value)",
             "advantage, reward + config.gamma * (1 - terminated) * next_value)"),)),
    Change("ppo", "half the horizon", "In 25 steps, half a second, a cart that drifts does not fall.",
           settings=dict(gamma=0.96)),
    Change("ppo", "termination ignored", FALL,
           (("gamma * (1 - terminated.to(reward)) * next_value", "gamma * next_value"),)),
    Change("ppo", "time limit taken for failure", TIME,
           (("next_value, terminated, done, config", "next_value, done, done, config"),)),
    Change("ppo", "terminated and truncated swapped", SWAP, (SWAPPED,)),
    Change("ppo", "the reset step learned from", RESET, (("x[reset == 0] for x", "x.flatten(0, 1) for x"),)),
    Change("pofd", "opposite sign", "Each step costs something, so that to fall at once costs least.",
           (("+ config.reward_lambda *", "- config.reward_lambda *"),)),
    Change("pofd", "D sees what was drawn", "D knows the agent by actions that the bounds do not allow.",
           (("np.hstack([obs, executed])", "np.hstack([obs, action])"),)),
    Change("pofd", "D's inputs not scaled", "D hardly sees the angle, beside the much larger velocities.",
           (("(np.hstack([obs, executed]) - mean) / std", "np.hstack([obs, executed])"),
            ("torch.as_tensor((demo - mean) / std,", "torch.as_tensor(demo,"))),
    Change("sac", "one Q", "The actor looks for errors of a critic; the lesser of two hides most of them.",
           ((".amin(0)", "[0]"),)),
    Change("sac", "termination ignored", FALL,
           (("gamma * (1 - batch.terminated.float()) * next_value", "gamma * next_value"),)),
    Change("sac", "time limit taken for failure", TIME,
           (("reward, next_obs, terminated))", "reward, next_obs, terminated | truncated))"),)),
]
CHANGES = [("departures", range(1301, 1311), change) for change in DEPARTURES]
CHANGES += [("break it", range(1301, 1306), change) for change in BROKEN]
EXPERIMENTS = [change.experiment(table, seeds) for table, seeds, change in CHANGES]


def figures(rows):
    """What is known for the markers in the texts, by their names: texts, and tables as lists of dicts."""
    texts, departures, broken = {}, [], []
    for (table, _, change), experiment in zip(CHANGES, EXPERIMENTS):
        found = benchmark.found([change.base(), experiment], rows)
        if len(found) < 2:
            continue
        whole, line = (benchmark.cells(*pair) for pair in found)
        if table == "break it":
            if not any(other["broken"].startswith(change.script) for other in broken):
                broken.append({"broken": f"{change.script}.py as it is", **whole, "why": ""})
            broken.append({"broken": experiment.name, **line, "why": change.lesson})
            continue
        factor = found[1][1].cpu.median() / found[0][1].cpu.median()
        texts[experiment.name] = f"without it {line['solved']} seeds and {factor:.1f} times the CPU seconds"
        having, lacking = (whole, line) if change.kept else (line, whole)
        departures.append({
            "departure": experiment.name, "": "kept" if change.kept else "dropped",
            **{f"{column} {verb}": cells[column] for column in ("solved", "steps", "CPU s")
               for verb, cells in (("with", having), ("without", lacking))},
            "failed without": lacking["failed"], "what it is for": change.lesson})
    for line in broken:
        for column in "goal", "worst episode", "failed":
            del line[column]
    return {**texts, "departures": departures, "break it": broken}


if __name__ == "__main__":
    benchmark.main(EXPERIMENTS, figures)
