"""What mutation.py hands to mutmut is the script, without the decorators that mutmut passes over."""

import types

import numpy as np
import pytest
import torch

import dqn
import mutation


@pytest.mark.parametrize("script", mutation.SCRIPTS)
def test_no_context_is_left_as_a_decorator(script):
    source = mutation.undecorated((mutation.TOP / script).read_text())
    for context in mutation.CONTEXTS:
        assert f"@{context}" not in source
    assert "with torch.inference_mode():" in source


def test_undecorated_script_does_the_same():
    module = types.ModuleType("undecorated_dqn")
    exec(mutation.undecorated((mutation.TOP / "dqn.py").read_text()), module.__dict__)
    settings = dict(total_timesteps=640, num_envs=4, hidden_size=16, batch_size=16, learning_starts=100)
    obs = np.random.default_rng(0).normal(size=(100, 4))
    ours, theirs = (x.train(x.Config(**settings), report=lambda row: None) for x in (dqn, module))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    assert (ours.act(obs) == theirs.act(obs)).all()


def test_mutmut_is_set_up_for_the_script(tmp_path):
    mutation.prepare(tmp_path, "sac.py")
    text = (tmp_path / "pyproject.toml").read_text()
    assert 'source_paths = ["sac.py"]' in text and '"tests/test_sac.py"' in text
    assert "(sac or (test_pendulums and not pofd)) and not layout" in text
    assert (tmp_path / "tests/test_sac.py").exists() and (tmp_path / "demos").is_dir()


@pytest.mark.parametrize("argv", [["nosuch.py"], ["sac"], [], ["dqn.py", "--sample", "x"]])
def test_bad_input_gets_status_2(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        mutation.main(argv)
    assert exit_.value.code == 2 and "error: " in capsys.readouterr().err
