"""Watch agents on their task, side by side: in a GIF or in a window.

`python demos/watch.py ppo.py --gif ppo.gif` trains, then plays one episode. `--load PATH` plays what `--save`
wrote, and may be repeated. `--untrained` and `--demo FILE.npz` put the agent before training and its teacher
beside it; other flags are the script's (`--total-timesteps 10000`). Needs pillow; CartPole's pictures and
`--window` need pygame-ce; the pendulums' are PyBullet's, without a screen.
"""
import argparse
import importlib
import itertools
import os
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import torch

HEIGHT = 30  # of the two lines of text above a panel
PYBULLET_FIXED = 4  # the type of a joint that doesn't move

class AgentReadyError(BaseException):
    """Ends a script's `main` when it has an agent; no `except Exception` may stop it."""

def load_script(name):
    """The module of a script, from a path or a bare name, in the current folder or beside `demos`."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    names = [os.path.join(folder, name + end) for folder in (os.getcwd(), top) for end in ("", ".py")]
    path = next((path for path in names if path.endswith(".py") and os.path.isfile(path)), None)
    if path is None:
        raise ValueError(f"{name}: no such script, expected dqn.py, ppo.py, pofd.py, sac.py or one like them")
    sys.path.insert(0, os.path.dirname(path))  # for plug-in ids such as sac:... too
    try:
        module = importlib.import_module(os.path.basename(path)[:-3])
    except Exception as error:
        raise ValueError(f"{name}: cannot be imported: {error}") from None
    if not all(hasattr(module, part) for part in ("Config", "train", "evaluate", "main")):
        raise ValueError(f"{name}: not a script like dqn.py, expected Config, train, evaluate and main in it")
    return module

def get_agents(module, load, untrained, flags, look):
    """[(title, agent)] and the environment's id. The script's own `main` trains or loads, and checks its
    input. `look(env_id)` is called before training."""
    found, train, evaluate = [], module.train, module.evaluate
    name = os.path.basename(module.__file__)

    def keep_config(config, *args, **kwargs):
        look(config.env_id)
        found.append(config)
        module.evaluate = evaluate  # `train` looks with it whether the task is solved
        try:
            return train(config, *args, **kwargs)
        finally:
            module.evaluate = keep_agent

    def keep_agent(agent, env_id, *args, **kwargs):
        raise AgentReadyError(agent, env_id)

    def run(argv):
        try:
            module.main(argv)
        except AgentReadyError as ready:
            return ready.args

    module.train, module.evaluate = keep_config, keep_agent
    try:
        results = [run([*flags, "--load", path]) for path in load] or [run(flags)]
    finally:
        module.train, module.evaluate = train, evaluate
    saved = [torch.load(path, "cpu", weights_only=True)["config"] for path in load]
    configs = [module.Config(**config) for config in saved] or found
    names = [os.path.basename(path) for path in load] if len(load) > 1 else [name]
    agents = [(f"{title}, {agent.steps:,} steps", agent) for title, (agent, _) in zip(names, results)]
    if untrained:  # as it began: all weights hang on the config's seed
        agents.insert(0, (f"{name}, untrained", type(results[0][0])(configs[0])))
    return agents, results[0][1]

def make_env(env_id):
    """The environment, drawing pictures without a screen, and its frames per second."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Gymnasium, ahead of the exception that says more
            env = gym.make(env_id, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"{env_id}: {error}; expected: pip install pygame-ce") from None
    except Exception as error:
        raise ValueError(f"{env_id}: draws no rgb_array: {error}") from None
    return env, env.metadata.get("render_fps", 30)

def play(agent, env_id, seed):
    """Yield (environment, step, action, return, whether the episode is over), greedily, from its start on."""
    env, _ = make_env(env_id)
    obs, _ = env.reset(seed=seed + 20_000)  # an episode that neither training nor the script's evaluation saw
    total, step, over = 0.0, 0, False
    while True:
        action = agent.act(obs[None])[0]
        yield env, step, action, total, over
        if not over:
            obs, reward, terminated, truncated, _ = env.step(action)
            total, step, over = total + float(reward), step + 1, terminated or truncated

def load_episode(path, episode):
    """Observations, actions and rewards of one recorded episode. ValueError if the file has no such thing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
        ends = np.flatnonzero(data["terminals"] | data["timeouts"]) + 1
        part = slice([0, *ends][episode - 1], ends[episode - 1])
        _, _ = data["observations"].shape
        return tuple(data[key][part] for key in ("observations", "actions", "rewards"))
    except Exception as error:
        text = str(error).split("\n")[0]
        raise ValueError(f"{path}: expected an .npz of demonstrations, {episode} or more: {text}") from None

def place(env, obs, clients):
    """Put an environment into the state of an observation, to be drawn: no physics step is made."""
    if not clients:  # Gymnasium's classic control keeps its state in one attribute
        env.unwrapped.state = np.array(obs, float)
        return
    import pybullet
    world, angles = {"physicsClientId": clients[-1]}, obs[-3:] if len(obs) == 5 else obs[-6:]
    body = pybullet.getBodyUniqueId(pybullet.getNumBodies(**world) - 1, **world)
    joints = [i for i in range(pybullet.getNumJoints(body, **world))
              if pybullet.getJointInfo(body, i, **world)[2] != PYBULLET_FIXED]
    positions = [obs[0], *np.arctan2(angles[1::3], angles[0::3])]  # of each hinge: cos, sin, speed
    for joint, position in zip(joints, positions):
        pybullet.resetJointState(body, joint, float(position), 0, **world)

def bullet_clients():
    """The Bullet worlds of this process."""
    pybullet = sys.modules.get("pybullet")
    return [i for i in range(64) if pybullet.isConnected(i)] if pybullet else []

def replay(path, env_id, episode):
    """Like `play`, for a recorded episode: its states, actions and rewards, nothing is simulated."""
    before = bullet_clients()
    env, _ = make_env(env_id)
    clients = [i for i in bullet_clients() if i not in before]
    observations, actions, rewards = load_episode(path, episode)
    if observations.shape[1:] != env.observation_space.shape:
        raise ValueError(f"{path}: {observations.shape[1]} numbers an observation, {env_id} has "
                         f"{env.observation_space.shape[0]}")
    if not clients and not hasattr(env.unwrapped, "state"):
        raise ValueError(f"{path}: {env_id} cannot be put into a recorded state")
    totals, last = np.cumsum([0.0, *rewards]), len(rewards) - 1
    for step in itertools.count():
        i = min(step, last)
        place(env, observations[i], clients)
        yield env, i, actions[i], totals[i + (step > last)], step > last

def draw(title, scene, width):
    """One panel: title, step, action and return above the picture of a scene of `play`."""
    from PIL import Image, ImageDraw, ImageFont
    env, step, action, total, over = scene
    picture = Image.fromarray(env.render())
    picture = picture.resize((width, round(width * picture.height / picture.width)))
    panel = Image.new("RGB", (width, picture.height + HEIGHT), "white")
    panel.paste(picture, (0, HEIGHT))
    action = " ".join(f"{x:+.2f}" for x in action) if np.ndim(action) else action
    text, size = f"step {step}  action {action}  return {total:g}", 12
    write, font = ImageDraw.Draw(panel), ImageFont.load_default(size)
    write.text((4, 1), title, "black", font)
    write.text((4, 15), text + "  end" * bool(over), "firebrick" if over else "black", font)
    return panel

def frames(panels, stride, steps, width):
    """Pictures of all panels side by side, every `stride` steps, until all are over or `steps` made."""
    from PIL import Image
    titles, scenes = [title for title, _ in panels], zip(*(scenes for _, scenes in panels))
    for step, row in zip(range(steps + 1), scenes):
        over = all(scene[-1] for scene in row)
        if step % stride == 0 or over:
            drawn = [draw(title, scene, width) for title, scene in zip(titles, row)]
            image = Image.new("RGB", (sum(x.width for x in drawn), drawn[0].height), "white")
            for i, panel in enumerate(drawn):
                image.paste(panel, (i * width, 0))
                image.paste("gray", (i * width, 0, i * width + 1, panel.height))
            yield image, row
        if over:
            return

def write_gif(path, images, seconds, colors):
    """Write an endless GIF; one palette for all frames, so that what stands still costs nothing."""
    from PIL import Image
    sample = images[:: max(1, len(images) // 4)]
    strip = Image.new("RGB", (sample[0].width, sample[0].height * len(sample)))
    for i, image in enumerate(sample):
        strip.paste(image, (0, i * image.height))
    palette = strip.quantize(colors)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    times = [max(20, round(seconds * 100) * 10)] * len(others) + [1500]  # ms, a GIF's are tens; hold the end
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)

def open_display():
    """Start pygame's display and return pygame. ValueError without a screen."""
    import pygame
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
            raise pygame.error("none was found")
    except pygame.error as error:
        raise ValueError(f"--window needs a screen: {error}") from None
    return pygame

def show_window(images, seconds):
    """Play pictures in a window as they are made, until they end or it is closed: the last scenes."""
    pygame = open_display()
    try:
        screen = None
        for image, row in images:  # noqa: B007
            start = time.perf_counter()
            screen = screen or pygame.display.set_mode(image.size)
            screen.blit(pygame.image.frombytes(image.tobytes(), image.size, "RGB"), (0, 0))
            pygame.display.flip()
            events = [(event.type, getattr(event, "key", 0)) for event in pygame.event.get()]
            if (pygame.QUIT, 0) in events or (pygame.KEYDOWN, pygame.K_ESCAPE) in events:
                break
            time.sleep(max(0, seconds - (time.perf_counter() - start)))
        pygame.display.quit()
        return row
    except pygame.error as error:
        raise ValueError(f"--window needs a screen: {error}") from None

def require(package, module):
    """ValueError that says what to install."""
    try:
        importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{package} is not installed, expected: pip install {package}") from None

def parse(argv):
    """(parser, our flags, the script's flags)."""
    parser = argparse.ArgumentParser("watch.py", argparse.SUPPRESS, __doc__.splitlines()[0],
                                     "Other flags are the script's: --env-id and so on", allow_abbrev=False)
    parser.add_argument("script", help="dqn.py, ppo.py, pofd.py, sac.py or one like them")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gif", metavar="OUT", help="write this file")
    where.add_argument("--window", action="store_true", help="show it on the screen")
    parser.add_argument("--load", action="append", default=[], help="what --save wrote; else it trains")
    parser.add_argument("--untrained", action="store_true", help="the agent as it was before training, too")
    parser.add_argument("--demo", help=".npz of demonstrations: a recorded episode, state by state, too")
    parser.add_argument("--demo-episode", type=int, default=1, help="which of them (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of training and of the episode (default: 1)")
    parser.add_argument("--seconds", type=float, default=10, help="of play, at most (default: 10)")
    parser.add_argument("--fps", type=float, default=15, help="frames per second, about (default: 15)")
    parser.add_argument("--stride", type=int, default=0, help="steps per frame (default: as --fps says)")
    parser.add_argument("--width", type=int, default=320, help="of a panel in pixels (default: 320)")
    parser.add_argument("--colors", type=int, default=32, help="of the GIF (default: 32)")
    return parser, *parser.parse_known_args(argv)

def check(flags):
    """ValueError for what can be known to be wrong before training."""
    for name, low, high in (("seconds", 0.1, 3600), ("fps", 1, 100), ("width", 160, 2000), ("colors", 2, 256),
                            ("stride", 0, 10**6), ("seed", 0, 2**31), ("demo_episode", 1, 10**6)):
        if not low <= getattr(flags, name) <= high:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is {getattr(flags, name)}, expected {low} to {high}")
    require("pillow", "PIL")
    if flags.window:
        require("pygame-ce", "pygame")
        open_display().display.quit()
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws in memory
    if os.path.isdir(flags.gif) or not os.access(os.path.dirname(flags.gif) or ".", os.W_OK):
        raise ValueError(f"{flags.gif}: cannot be written, expected a file in an existing folder")
    elif not flags.gif.endswith(".gif"):
        raise ValueError(f"{flags.gif}: expected a name that ends in .gif")

def main(argv=None):
    parser, flags, others = parse(argv)
    try:
        check(flags)
        module = load_script(flags.script)
        seed = [] if flags.load else ["--seed", str(flags.seed)]

        def teacher(env_id):
            """The panels that need no agent. ValueError if there is something that cannot be drawn."""
            make_env(env_id)[0].close()
            panels = [("teacher, as recorded", replay(flags.demo, env_id, flags.demo_episode))]
            return panels * bool(flags.demo and next(replay(flags.demo, env_id, flags.demo_episode)))

        agents, env_id = get_agents(module, flags.load, flags.untrained, seed + others, teacher)
        panels = [(title, play(agent, env_id, flags.seed)) for title, agent in agents] + teacher(env_id)
        fps = make_env(env_id)[1]
        stride = flags.stride or max(1, round(fps / flags.fps))
        images = frames(panels, stride, round(flags.seconds * fps), flags.width)
        if flags.window:
            row = show_window(images, stride / fps)
        else:
            images, rows = zip(*images)
            write_gif(flags.gif, images, stride / fps, flags.colors)
            row = rows[-1]
            print(f"{flags.gif}: {len(images)} frames, {os.path.getsize(flags.gif) / 1000:,.0f} kB")
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])
    for (title, _), (_, step, _, total, over) in zip(panels, row):
        print(f"{title}: return {total:g} after {step} steps{'' if over else ', cut there'}")

if __name__ == "__main__":
    main()
