"""Fixtures for all tests: two threads at most, and a registry no test can leave changed."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("attnbench", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("attnbench")
os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers 80; what tests read is no terminal


@pytest.fixture(autouse=True)
def _few_threads():
    """Tests run in parallel on two cores: one thread each."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own, so that errors show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imagined_plugins(monkeypatch):
    """Suites are checked against imagined backends."""
    from suite_registry import imagined_registry

    from attnbench import plugins

    registry = imagined_registry()
    monkeypatch.setattr(plugins, "registry", lambda: registry)
