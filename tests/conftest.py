"""Fixtures of several test files."""

import pytest
from forks import Forks
from test_common import SCRIPTS


@pytest.fixture(scope="session")
def forks():
    """See forks.py: a process for a command, without the cost of its imports."""
    server = Forks(SCRIPTS)
    yield server
    server.close()
