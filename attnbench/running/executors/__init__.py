"""Ways to run cases, one file each; `interface.py` says what all of them promise."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.running.executors.interface import Asked, Executor

EXECUTORS = ("inline", "process", "jobs", "ray", "slurm")


def make_executor(name: str, asked: Asked) -> Executor:
    """Return the executor of that name, of `EXECUTORS`; raises UserInputError for what it cannot do."""
    made: Executor = importlib.import_module(f"{__name__}.{name}").executor(asked)
    return made
