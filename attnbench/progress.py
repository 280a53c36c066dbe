"""Whom to tell how far something has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much, and a note on what is being done."""

StageProgress = Callable[[str, int, int, str], None]
"""The same for the stages of a case: the stage's name comes first."""


def unheard(done: int, total: int, note: str) -> None:
    """Progress that nobody listens to."""
