"""Bars while something runs, and one line per finished case; nothing of it without a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from attnbench.console.screen import console
from attnbench.progress import Progress
from attnbench.results import Result

if TYPE_CHECKING:
    from attnbench.running.runner import Listener


def _bars(quiet: bool) -> Bars:
    screen = console(stderr=True)
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=screen,
        disable=quiet or not screen.is_terminal,
        transient=True,
    )


@contextlib.contextmanager
def progress_bar(title: str, *, quiet: bool) -> Iterator[Progress]:
    """Yield a sink (done, total, note) that draws one bar with the time left."""
    with _bars(quiet) as bars:
        task = bars.add_task(escape(title), total=None, note="")
        yield lambda done, total, note: bars.update(task, completed=done, total=total, note=escape(note))


@contextlib.contextmanager
def run_listener(num_cases: int, *, quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows all cases, the stage at work, and one line per finished case."""
    from attnbench.running.runner import Listener

    with _bars(quiet) as bars:
        cases = bars.add_task("cases", total=num_cases, note="")
        stages: dict[str, TaskID] = {}

        def show(title: str, done: int, total: int, note: str) -> None:
            if title not in stages:
                for task in stages.values():
                    bars.remove_task(task)
                stages.clear()
                stages[title] = bars.add_task(escape(title), total=total, note="")
            bars.update(stages[title], completed=done, total=total, note=escape(note))

        def finished(result: Result, cached: bool) -> None:
            bars.advance(cases)
            if not quiet:
                word = "cached" if cached else result.status
                reason = f": {result.reason}" if result.reason else ""
                bars.console.print(escape(f"{word:>8}  {result.label}{reason}"))

        yield Listener(
            progress=lambda case, stage, done, total, note: show(f"{case.label}: {stage}", done, total, note),
            finished=finished,
            profiling=lambda done, total, note: show("profile", done, total, note),
        )
