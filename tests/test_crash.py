"""What is left when a run is killed, interrupted, out of disk, fed rubbish, or given a malicious file.

With KILLS=50 in the environment each script is killed 50 times at moments of its training and 50 times while
it saves, and the figures are printed.
"""

import importlib
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from test_common import BOX_ONLY, SCRIPTS, demonstrations, flags

KILLS = int(os.environ.get("KILLS", 5))


def whole(script, path):
    """The file loads, and its weights fit."""
    module = importlib.import_module(script)
    saved = torch.load(path, "cpu", weights_only=True)
    config = module.Config(**saved["config"])
    network = {"dqn": "QNetwork", "sac": "Actor"}.get(script, "ActorCritic")
    getattr(module, network)(config).load_state_dict(saved[f"{script}.py {config.env_id}"])
    return config.seed


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_any_moment_the_file_is_absent_or_whole(script, forks, tmp_path, capsys):
    path, half, rng = tmp_path / "agent.pt", tmp_path / "agent.pt.tmp", np.random.default_rng()
    argv, seconds = [*flags(script), "--save", path], np.inf
    for _ in range(2):
        start = time.perf_counter()
        assert forks.run(script, argv, evaluate=False)[0] == 0
        seconds = min(seconds, time.perf_counter() - start)
    only_save = ["--load", tmp_path / "first.pt", "--save", path]
    path.rename(tmp_path / "first.pt")
    figures = {"killed": 0, "absent": 0, "whole": 0, "killed while saving": 0}
    for kill in range(2 * KILLS):
        if kill < KILLS:  # moments from the start of training to just after the saving
            how = {"kill": (signal.SIGKILL, 1.1 * seconds * (kill + rng.random()) / KILLS)}
            status, *_ = forks.run(script, argv, evaluate=False, **how)
        else:
            how = {"kill": (signal.SIGKILL, 0.001 * rng.random()), "after_file": str(half)}
            status, *_ = forks.run(script, only_save, evaluate=False, **how)
        figures["killed"] += status == -signal.SIGKILL
        figures["whole" if path.exists() and whole(script, path) == 1 else "absent"] += 1
        figures["killed while saving"] += half.exists()
        if kill % 3:  # what one run leaves, the next one finds
            path.unlink(missing_ok=True)
        half.unlink(missing_ok=True)
    with capsys.disabled():
        if "KILLS" in os.environ:
            print(f"\n{script}.py: {figures}, corrupt: 0")
    assert figures["killed"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_save_that_breaks_off_leaves_the_earlier_file(script, tmp_path, monkeypatch, capsys):
    """The same, but not by chance: saving writes half of it, somewhere, and fails."""
    module, path = importlib.import_module(script), tmp_path / "agent.pt"
    path.write_bytes(b"what was there before")
    save, monkey = torch.save, []

    def break_off(content, file):
        save(content, file)
        monkey.append(file)
        os.truncate(file, os.path.getsize(file) // 2)
        raise OSError("no space left on the device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(SystemExit) as exit_:
        module.main([*flags(script), "--save", str(path)])
    line = f"{script}.py: error: {path}: not written: no space left on the device\n"
    assert exit_.value.code == 1 and monkey and capsys.readouterr().err == line
    assert path.read_bytes() == b"what was there before"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_disk_gets_one_line(script, forks, tmp_path):
    path = tmp_path / "agent.pt"
    path.write_bytes(b"what was there before")
    status, _, err = forks.run(script, [*flags(script), "--save", path], file_size=2_048)
    assert status == 1 and err.count("\n") == 1 and err.startswith(f"{script}.py: error: {path}: "), err
    assert path.read_bytes() == b"what was there before"


@pytest.mark.parametrize("script", SCRIPTS)
def test_control_c_at_any_moment_keeps_what_was_learned(script, forks, tmp_path):
    path = tmp_path / "agent.pt"
    argv = [*flags(script, total_timesteps=100_000_000), "--save", path]
    how = {"kill": (signal.SIGINT, 0.05 * np.random.default_rng().random()), "after_text": True}
    status, out, err = forks.run(script, argv, **how)
    assert (status, err) == (130, "") and out.startswith("step ")
    assert whole(script, path) == 1 and [file.name for file in tmp_path.iterdir()] == ["agent.pt"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reward_that_is_not_finite_ends_the_run(script, tmp_path, capsys):
    path = tmp_path / "agent.pt"
    path.write_bytes(b"what was there before")
    settings = {"env_id": f"probes:BrokenReward{'Box' * (script in BOX_ONLY)}-v0"}
    settings |= {"demo": demonstrations(2)} if script == "pofd" else {}
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(script).main([*flags(script, **settings), "--save", str(path)])
    err = capsys.readouterr().err
    assert exit_.value.code == 1 and err.count("\n") == 1 and "not finite" in err and "loss" in err
    assert path.read_bytes() == b"what was there before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "place",
    [
        "missing/agent.pt",
        "file/agent.pt",
        "folder",
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_training(
    script, place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("training started"))
    with pytest.raises(SystemExit) as exit_:
        module.main([*flags(script), "--save", str(tmp_path / place)])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count("\n") == 1 and place in err


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("script", SCRIPTS)
def test_malicious_files_are_refused_and_nothing_of_them_runs(script, tmp_path, capsys, monkeypatch):
    ran, files = tmp_path / "ran", []
    for name, content in (("bare", Evil(ran)), ("config", {"config": {"seed": Evil(ran)}})):
        files += [("--load", tmp_path / f"{name}.pt"), ("--load", tmp_path / f"{name}.pkl")]
        torch.save(content, files[-2][1])
        files[-1][1].write_bytes(pickle.dumps(content, protocol=2))
    if script == "pofd":
        files += [("--demo", tmp_path / "demo.npz"), ("--demo", tmp_path / "bare.pkl")]
        evil = np.full((20, 5), None)
        evil[3, 3] = Evil(ran)
        np.savez(files[-2][1], observations=evil, actions=np.zeros((20, 1)))
    pickle.loads(files[1][1].read_bytes())
    assert ran.is_dir()  # it would
    ran.rmdir()
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("training started"))
    for flag, path in files:
        with pytest.raises(SystemExit) as exit_:
            module.main([flag, str(path)])
        err = capsys.readouterr().err
        assert exit_.value.code == 2 and err.count("\n") == 1 and path.name in err, err
        assert not ran.exists()
