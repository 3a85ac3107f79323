"""Watch agents play side by side, and plot how they learned. Needs matplotlib and pillow.

    python demos/watch.py ppo.py --gif ppo.gif --untrained
    python demos/watch.py ppo.py --curves ppo.png --rows ppo.csv --seeds 1 2 3
    python demos/watch.py ppo.py --gif ppo.gif --load agent.pt

The first two train agents; other flags are then settings of the script. The third plays what
`python ppo.py --save agent.pt` wrote. A ring in the curves is where a solved run ended."""
import argparse
import csv
import dataclasses
import os
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demos.record import KEYS, WRONG_INPUT, load_agent, load_script, make_agent
from demos.record import make_config, new_file, script_path

SECONDS, FPS, WIDTH, HEIGHT = 10, 15, 320, 30  # of a GIF; pixels of a picture and its title


def plot_curves(path, rows, title, threshold, total_timesteps):
    """Plot each column of the rows against steps: a panel for a column, a line for a seed."""
    names = [name for name in rows[0] if name not in ("seed", "step")]
    last = {row["seed"]: row for row in rows}  # of each seed
    solved = [row for row in last.values() if row["step"] < total_timesteps]  # this ended it
    figure = Figure((4 * len(names), 3.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(names), sharex=True)
    for axes, name in zip(panels, names):
        for seed in last:
            points = [(row["step"], row[name]) for row in rows if row["seed"] == seed]
            axes.plot(*zip(*points), ".-", label=f"seed {seed}")
        values = [row[name] for row in rows if np.isfinite(row[name])]
        if name != "return" and values and 0 < 100 * min(values) < max(values):
            axes.set_yscale("log")
        axes.set(title=name, xlabel="environment steps")
        axes.grid(alpha=0.3)
    if solved:
        points = [(row["step"], row["return"]) for row in solved]
        panels[0].plot(*zip(*points), "ko", fillstyle="none", markersize=11, label="solved")
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


def load_episode(path, env):
    """The first episode of a file of demonstrations, if this environment can show it."""
    assert zipfile.is_zipfile(path), f"{path}: there is no such .npz file"
    with np.load(path) as file:
        arrays = [file[key] for key in KEYS if key in file]
    shapes = [array.shape[1:] for array in arrays]
    expected = [env.observation_space.shape, env.action_space.shape, (), (), ()]
    whole = shapes == expected and np.any(arrays[3:])
    assert whole, f"{path}: expected an episode of {KEYS} {expected}, found {shapes}"
    end = np.argmax(np.logical_or(*arrays[3:])) + 1
    env.reset()
    place(env.unwrapped, arrays[0][0])
    return [array[:end] for array in arrays]


def place(env, obs):
    """Put an environment into the state that an observation shows, if it shows all of it."""
    if type(env).__module__ == "demos.pendulums":
        env.set_state(obs)
    else:  # CartPole and others whose observation is their state
        known = np.shape(getattr(env, "state", None)) == obs.shape
        assert known, f"--demo: {env.spec.id} can't be put into the state of an observation"
        env.state = np.array(obs, float)


def replay(episode, env):
    """Show a recorded episode, nothing is simulated. Yield as `play` does."""
    obs, actions, rewards, terminals, _ = episode
    for step, action in enumerate(actions):
        place(env.unwrapped, obs[step])
        yield action, rewards[:step].sum(), ""
    yield action, rewards.sum(), "terminated" if terminals[-1] else "time limit"


def play(agent, env, seed):
    """Play an episode greedily. Yield the next action, the return so far, and how it ended."""
    obs, _ = env.reset(seed=seed + 10**7)  # an episode that training did not see
    total, ending = 0.0, ""
    while True:
        action = agent.act(obs[None])[0]
        yield action, total, ending
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        ending = "terminated" if terminated else "time limit" if truncated else ""


def film(title, env, moments):
    """The pictures of an episode's first seconds. The last one has red text if it terminated."""
    fps, pictures = env.metadata.get("render_fps", 30), []
    for step, (action, total, ending) in enumerate(moments):
        if step >= SECONDS * fps:
            ending = ending or "cut here"
        if ending or step % max(1, round(fps / FPS)) == 0:
            scene = Image.fromarray(env.render())
            scene = scene.resize((WIDTH, round(WIDTH * scene.height / scene.width)))
            picture = Image.new("RGB", (WIDTH + 2, HEIGHT + scene.height), "gainsboro")
            picture.paste(scene, (0, HEIGHT))
            last = ending or f"action {np.round(action, 2)}"
            text = f"{title}\nstep {step}  return {total:g}  {last}"
            color = "firebrick" if ending == "terminated" else "black"
            ImageDraw.Draw(picture).text((4, 0), text, color, font_size=12, spacing=1)
            pictures.append(picture)
        if ending:
            print(f"{title}: return {total:g} after {step} steps, {ending}")
            return pictures


def write_gif(path, films):
    """Write an endless GIF of films side by side."""
    frames = []
    for i in range(max(map(len, films))):
        panels = [pictures[min(i, len(pictures) - 1)] for pictures in films]  # the end stays
        frames.append(np.hstack(panels))
    sample = np.vstack(frames[::-10])  # the last frame, and every tenth before
    palette = Image.fromarray(sample).quantize(64)  # one for all: what stands still costs nothing
    frames = [Image.fromarray(frame).quantize(palette=palette, dither=0) for frame in frames]
    durations = [round(100 / FPS) * 10] * (len(frames) - 1) + [1500]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def train(module, config, rows):
    """Train an agent. The rows that it reports are printed, and appended to `rows`."""
    def report(row):
        module.show(row)
        rows.append({"seed": config.seed, **row})
    return module.main(config, report)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("script", type=script_path, help="dqn.py or another; its settings are flags, too")
    add("--gif", type=new_file(".gif"), help="show how agents play")
    add("--curves", type=new_file(".png", ".svg", ".pdf"), help="plot how they learned")
    add("--rows", type=new_file(".csv"), help="write what is plotted")
    add("--load", nargs="+", action="extend", default=[], help="play what --save wrote")
    add("--untrained", action="store_true", help="show an agent before training, too")
    add("--demo", help="show the first episode of this .npz, too")
    add("--seeds", type=int, nargs="+", help="train an agent with each of these")
    flags, settings = parser.parse_known_args(argv)
    if not (flags.gif or flags.curves or flags.rows):
        parser.error("expected --gif, --curves or --rows")
    if (flags.load or flags.untrained or flags.demo) and not flags.gif:
        parser.error("--load, --untrained and --demo need --gif")
    if flags.load and (flags.curves or flags.rows or flags.seeds or settings):
        parser.error("--load does not train: it takes no settings, --curves, --rows or --seeds")
    try:
        module = load_script(flags.script)
        loaded = [load_agent(module, path) for path in flags.load]
        config = loaded[0][1] if loaded else make_config(module, settings)
        threshold = gym.make_vec(config.env_id).spec.reward_threshold
        env = open_scene(config.env_id) if flags.gif else None
        episode = load_episode(flags.demo, env) if flags.demo else None
        untrained = make_agent(module, config)
        env_ids = {config.env_id for _, config in loaded}
        assert len(env_ids) < 2, f"--load: the agents are of several environments: {env_ids}"
    except WRONG_INPUT as error:
        parser.error(error)

    name, rows = flags.script.name, []
    agents = {f"{name}, untrained": untrained} if flags.untrained else {}
    for path, (agent, _) in zip(flags.load, loaded):
        agents[path] = agent
    for seed in [] if loaded else flags.seeds or [config.seed]:
        agent = train(module, dataclasses.replace(config, seed=seed), rows)
        agents[f"{name}, seed {seed}, after {rows[-1]['step']:,} steps"] = agent
    if flags.rows:
        with open(flags.rows, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])
    if flags.curves:
        title = f"{name} on {config.env_id}"
        plot_curves(flags.curves, rows, title, threshold, config.total_timesteps)
    if flags.gif:
        films = [film("demonstration", env, replay(episode, env))] if flags.demo else []
        for title, agent in agents.items():
            films.append(film(title, env, play(agent, env, config.seed)))
        write_gif(flags.gif, films)


if __name__ == "__main__":
    main()
