"""Watch agents play side by side, and plot how they learned. Needs matplotlib and pillow.

    python demos/watch.py pofd.py --gif pofd.gif --teacher --untrained --seed 2
    python demos/watch.py ppo.py --curves ppo.png --seeds 1 2 3
    python demos/watch.py ppo.py --gif ppo.gif --load agent.pt

The first two train agents; other flags are then settings of the script. The third plays what
`python ppo.py --save agent.pt` wrote. A ring in the curves is where a solved run ended."""
import argparse
import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import load_agent, load_script, make_agent, make_config, swing_up

SECONDS, FPS, WIDTH, HEIGHT = 10, 20, 320, 30  # of a GIF; pixels of a picture and its title


def plot_curves(path, runs, config):
    """Plot each column of the rows against steps. `runs` is {seed: rows}, a line for each."""
    threshold = gym.make_vec(config.env_id).spec.reward_threshold
    names = list(next(iter(runs.values()))[0])[1:]  # all but the step
    figure = Figure((4 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True)
    for axes, name in zip(panels, names):
        axes.set(title=name, xlabel="environment steps")
        for seed, rows in runs.items():
            points = [(row["step"], row[name]) for row in rows]
            axes.plot(*zip(*points), ".-", label=f"seed {seed}")
    ends = [rows[-1] for rows in runs.values()]
    solved = [(row["step"], row["return"]) for row in ends if row["step"] < config.total_timesteps]
    if solved:
        panels[0].plot(*zip(*solved), "ko", fillstyle="none", markersize=11, label="solved")
    if threshold is not None:
        panels[0].axhline(threshold, color="gray", linestyle="--", label="reward threshold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path)
    return figure


def open_scene(env_id):
    """An environment that draws. It does so once, to find out now whether it can."""
    modes = gym.make(env_id).metadata["render_modes"]
    assert "rgb_array" in modes, f"{env_id} can't be drawn: render_modes {modes} lack rgb_array"
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset()
    env.render()
    return env


def film(title, agent, env, seed):
    """The first seconds of a greedy episode: pictures. The last has red text if it terminated."""
    obs, _ = env.reset(seed=seed + 10**7)  # an episode that training did not see
    fps = env.metadata.get("render_fps", 30)
    total, ending, pictures = 0.0, "", []
    for step in range(SECONDS * fps + 1):
        if ending or step % max(1, round(fps / FPS)) == 0:
            scene = ImageOps.contain(Image.fromarray(env.render()), (WIDTH, WIDTH))
            picture = ImageOps.expand(scene, (1, HEIGHT, 1, 0), "gainsboro")
            text = f"{title}\nstep {step}  return {total:g}  {ending}"
            color = "firebrick" if ending == "terminated" else "black"
            ImageDraw.Draw(picture).text((4, 0), text, color, font_size=12, spacing=1)
            pictures.append(picture)
        if ending or step == SECONDS * fps:
            break
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs[None])[0])
        total += float(reward)
        if terminated:
            ending = "terminated"
        elif truncated:
            ending = "time limit"
    print(f"{title}: return {total:g} after {step} steps, {ending or 'cut here'}")
    return pictures


def write_gif(path, films):
    """Write an endless GIF of films side by side."""
    frames = []
    for i in range(max(map(len, films))):
        panels = [pictures[min(i, len(pictures) - 1)] for pictures in films]  # the end stays
        frames.append(Image.fromarray(np.hstack(panels)))
    palette = frames[-1].quantize(64)  # one for all: what stands still costs nothing
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0)


def train(module, config):
    """Train an agent: the agent and the rows that it reported. They are printed, too."""
    rows = []

    def report(row):
        module.show(row)
        rows.append(row)
    return module.main(config, report), rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("module", metavar="script", type=load_script, help="dqn.py or another, with its flags")
    add("--gif", help="show how agents play")
    add("--curves", help="plot how they learned")
    add("--load", help="play what --save wrote")
    add("--teacher", action="store_true", help="show the rule that swings a pole up, too")
    add("--untrained", action="store_true", help="show an agent before training, too")
    add("--seeds", type=int, nargs="+", help="train an agent with each of these")
    flags, settings = parser.parse_known_args(argv)
    if flags.load and (flags.curves or flags.seeds or settings):
        parser.error("--load does not train: it takes no settings, --curves or --seeds")
    agents, runs = {}, {}
    try:
        if flags.load:
            agents[flags.load], config = load_agent(flags.module, flags.load)
        else:
            config = make_config(flags.module, settings)
        assert not flags.teacher or "Swingup" in config.env_id, "--teacher needs the swing-up"
        assert flags.gif or flags.curves, "expected --gif or --curves"
        if flags.gif:
            env = open_scene(config.env_id)
            Image.new("RGB", (1, 1)).save(flags.gif)  # to find out now if it can be written
        if flags.curves:
            Figure().savefig(flags.curves)
    except (AssertionError, ImportError, OSError, ValueError, gym.error.Error) as error:
        parser.error(error)

    if flags.teacher:
        agents["the teacher"] = SimpleNamespace(act=swing_up)
    if flags.untrained:
        agents["untrained"] = make_agent(flags.module, config)
    if not flags.load:
        for seed in flags.seeds or [config.seed]:
            agent, rows = train(flags.module, dataclasses.replace(config, seed=seed))
            agents[f"seed {seed}, after {rows[-1]['step']:,} steps"] = agent
            runs[seed] = rows
    if flags.curves:
        plot_curves(flags.curves, runs, config)
    if flags.gif:
        films = [film(title, agent, env, config.seed) for title, agent in agents.items()]
        write_gif(flags.gif, films)


if __name__ == "__main__":
    main()
