"""Whom a run tells what."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from attnbench.results import Result
from attnbench.specs import Case

CaseProgress = Callable[[Case, str, int, int, str], None]  # case, stage, done, total, note


def _write_notice(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")
    sys.stderr.flush()


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Whom to tell: each case's progress and ended stages, each finished case, the profile, and notices.

    A notice is for a person to read at once: whom this run waits for, or that there are no file locks. All
    are called in the thread that runs the suite.
    """

    progress: CaseProgress = lambda case, stage, done, total, note: None
    stage_ended: Callable[[Case, str, float], None] = lambda case, what, seconds: None
    finished: Callable[[Result, bool], None] = lambda result, cached: None
    profiling: Callable[[int, int, str], None] = lambda done, total, note: None
    notice: Callable[[str], None] = _write_notice


def saying_once(listener: Listener) -> Listener:
    """Return a listener that hears each notice once: every stage of a run has the same to say."""
    said: set[str] = set()

    def notice(text: str) -> None:
        if text not in said:
            said.add(text)
            listener.notice(text)

    return replace(listener, notice=notice)
