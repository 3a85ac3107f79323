"""Sweeps on Ray, nothing of ours in between: the same weights as the same runs without it."""

import os

import pytest
from test_common import SCRIPTS, TOP, make, weights

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster, not one for each process of the tests

GRID = [dict(seed=1), dict(seed=2), dict(seed=2, gamma=0.9), dict(seed=2, learning_rate=1e-2)]


@pytest.fixture(scope="module")
def cluster():
    """A local one of two workers."""
    paths = os.pathsep.join([str(TOP), str(TOP / "tests")])
    environment = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_same_weights_as_alone(script, cluster):
    module, configs = make(script)[0], [make(script, **settings)[1] for settings in GRID]
    train = ray.remote(module.train)
    agents = ray.get([train.remote(config) for config in configs])
    hashes = [weights(agent) for agent in agents]
    assert hashes == [weights(module.train(config, report=lambda row: None)) for config in configs]
    assert len(set(hashes)) == len(GRID)
