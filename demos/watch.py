"""Watch agents play, side by side, and plot how they learned.

`python demos/watch.py ppo.py --gif ppo.gif` trains, then plays an episode. `--load PATH` plays what `--save`
wrote; `--untrained` and `--demo FILE.npz` add the agent before training and its teacher. `--curves out.png`
plots the rows that training reports, `--rows out.csv` keeps them, both for all `--seeds`. Other flags are
settings of the script. Needs pillow for pictures, pygame-ce for those of CartPole, matplotlib for curves."""
import argparse
import dataclasses
import os
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import load_agent, load_script, make_agent, make_config, script_path

FPS, WIDTH, HEIGHT = 15, 320, 30  # frames per second; pixels of a picture, and of the text above it


def train(module, config, rows):
    """Train an agent. Each line "step 3200  return 13.9 ..." that it reports goes into `rows` as a dict."""
    def report(line):
        print(line, flush=True)
        words = line.split()
        rows.append({"seed": str(config.seed), **dict(zip(words[::2], words[1::2]))})
    return module.main(config, report)


def plot_curves(path, rows, title, threshold):
    """Plot every column of the rows against steps: one panel a column, one line a seed."""
    from matplotlib.figure import Figure
    names = [name for name in rows[0] if name not in ("seed", "step")]
    figure = Figure((4 * len(names), 3.2), layout="constrained")
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(1, len(names)), names):
        for seed in dict.fromkeys(row["seed"] for row in rows):
            points = [(float(row["step"]), float(row[name])) for row in rows if row["seed"] == seed]
            axes.plot(*zip(*points), ".-", label=f"seed {seed}")
        axes.set_yscale("log" if name in ("alpha", "critic_loss") else "linear")  # they span powers of ten
        axes.set(title=name, xlabel="environment steps")
        axes.grid(alpha=0.3)
    if threshold is not None:
        figure.axes[0].axhline(threshold, color="gray", linestyle="--", label="solved")
    figure.axes[0].legend()
    figure.savefig(path, format="png", dpi=100)


def live(agent, env, seed):
    """Yield (action, return so far, whether the episode is over), acting greedily."""
    obs, _ = env.reset(seed=seed + 20_000)  # an episode that training did not see
    total, over = 0.0, False
    while True:
        action = agent.act(obs[None])[0]
        yield action, total, over
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated


def recorded(env, path):
    """The same for the first episode of a file: its states are drawn, nothing is simulated."""
    with np.load(path) as data:
        end = (data["terminals"] | data["timeouts"]).argmax() + 1
        obs, actions, rewards = (data[key][:end] for key in ("observations", "actions", "rewards"))
    if obs.shape[1:] != env.observation_space.shape:
        raise ValueError(f"{path}: observations {obs.shape[1:]}, expected {env.observation_space.shape}")
    env.reset()
    for step, action in enumerate(actions):
        place(env.unwrapped, obs[step])
        yield action, rewards[:step].sum(), False
    yield action, rewards.sum(), True


def place(env, obs):
    """Put an environment into the state of an observation."""
    if not hasattr(env, "envs"):  # Gymnasium's classic control keeps its state in one attribute
        env.state = np.array(obs, float)
        return
    from demos.pendulums import pybullet
    hinges = obs[-3 * (len(env.envs.joints) - 1):].reshape(-1, 3)  # cosine, sine and speed of each
    for joint, position in zip(env.envs.joints, [obs[0], *np.arctan2(hinges[:, 1], hinges[:, 0])]):
        pybullet.resetJointState(env.envs.bodies[0], joint, float(position), 0, **env.envs.world)


def draw(title, scenes, env):
    """The pictures of an episode's first 10 seconds, with title, step, action and return above each."""
    from PIL import Image, ImageDraw, ImageFont
    fps, pictures = env.metadata["render_fps"], []
    for step, (action, total, over) in zip(range(int(10 * fps) + 1), scenes):
        if over or step % max(1, round(fps / FPS)) == 0:
            scene = Image.fromarray(env.render())
            scene = scene.resize((WIDTH, round(WIDTH * scene.height / scene.width)))
            pictures.append(Image.new("RGB", (WIDTH, scene.height + HEIGHT), "white"))
            pictures[-1].paste(scene, (0, HEIGHT))
            text = f"{title}\nstep {step}  action {np.round(action, 2)}  return {total:g}{'  end' * over}"
            color, font = "firebrick" if over else "black", ImageFont.load_default(12)
            ImageDraw.Draw(pictures[-1]).multiline_text((4, 0), text, color, font, spacing=1)
        if over:
            break
    env.close()
    print(f"{title}: return {total:g} after {step} steps{'' if over else ', cut there'}")
    return pictures


def write_gif(path, panels):
    """Write an endless GIF. All frames share one palette, so that what stands still costs nothing."""
    from PIL import Image
    frames = [np.hstack([panel[min(i, len(panel) - 1)] for panel in panels])  # one that is over waits
              for i in range(max(map(len, panels)))]
    palette = Image.fromarray(np.vstack(frames[:: max(1, len(frames) // 4)])).quantize(32)
    first, *others = (Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in frames)
    times = [round(100 / FPS) * 10] * len(others) + [1500]  # milliseconds; the end is held
    first.save(path, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def main(argv=None):
    parser = argparse.ArgumentParser("watch.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("script", type=script_path, help="dqn.py or another; its settings are flags, too")
    parser.add_argument("--gif", type=Path, help="write the agents' play to this file")
    parser.add_argument("--curves", type=Path, help="plot return, loss and the like to this .png")
    parser.add_argument("--rows", type=Path, help="write what is plotted to this .csv")
    parser.add_argument("--load", action="append", default=[], help="play what --save wrote, do not train")
    parser.add_argument("--seeds", type=int, nargs="+", help="train an agent for each of these")
    parser.add_argument("--untrained", action="store_true", help="add the agent before training")
    parser.add_argument("--demo", help="add a recorded episode from this .npz")
    flags, others = parser.parse_known_args(argv)
    training = flags.curves or flags.rows or flags.seeds or others
    if not (flags.gif or flags.curves or flags.rows) or flags.load and training:
        parser.error("expected --gif, --curves or --rows; with --load only --gif, --untrained and --demo")
    for path in flags.gif, flags.curves, flags.rows:
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such folder")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen

    module, name, rows, panels = load_script(flags.script), flags.script.name, [], []
    loaded = [load_agent(module, path) for path in flags.load]
    config = loaded[0][1] if loaded else make_config(module, others)

    def show(title, agent=None):  # without an agent: the recorded episode
        if flags.gif:
            env = gym.make(config.env_id, render_mode="rgb_array")
            scenes = live(agent, env, config.seed) if agent else recorded(env, flags.demo)
            panels.append(draw(title, scenes, env))

    if flags.demo:
        show("teacher, as recorded")
    if flags.untrained:
        show(f"{name}, untrained", make_agent(module, config))
    for path, (agent, _) in zip(flags.load, loaded):
        show(Path(path).name, agent)
    for seed in [] if loaded else flags.seeds or [config.seed]:
        show(f"{name}, seed {seed}", train(module, dataclasses.replace(config, seed=seed), rows))
    if flags.rows:
        lines = [",".join(line) for line in (rows[0], *(row.values() for row in rows))]
        flags.rows.write_text("\n".join(lines) + "\n")
    if flags.curves:
        plot_curves(flags.curves, rows, f"{name}: {config.env_id}", gym.spec(config.env_id).reward_threshold)
    if flags.gif:
        write_gif(flags.gif, panels)


if __name__ == "__main__":
    main()
