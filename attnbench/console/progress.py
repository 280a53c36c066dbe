"""Bars while something runs, or lines now and then where no terminal is; one line per finished case."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
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

from attnbench.console.plan_view import duration
from attnbench.console.screen import console
from attnbench.progress import Progress
from attnbench.results import Result

if TYPE_CHECKING:
    from attnbench.running.listener import Listener
    from attnbench.specs import Case

LINE_EVERY_S = 60.0  # a file that somebody follows must show that something goes on


class Lines:
    """Progress in a file: a line where nothing was said for a minute, and what its owner says at once."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = say, clock
        self._said_at = clock()

    def progress(self, title: str, done: int, total: int, note: str) -> None:
        """Say how far something has come, unless the last line is younger than a minute."""
        self.all_of([(title, done, total, note)])

    def all_of(self, going_on: Iterable[tuple[str, int, int, str]]) -> None:
        """Say it of several things that go on at the same time, a line each."""
        if self._clock() - self._said_at >= LINE_EVERY_S:
            for title, done, total, note in going_on:
                share = f" {done:,} of {total:,}" if total else ""
                self.say(f"{title}{share}{f', {note}' if note else ''}")

    def say(self, text: str) -> None:
        """Say something now."""
        self._said_at = self._clock()
        self._write(text)


def _lines(bars: Bars, quiet: bool) -> Lines:
    """Return what says in lines what bars would show; silent where they do, or where that is asked for."""
    is_shown = not quiet and not bars.console.is_terminal
    return Lines(lambda text: bars.console.print(escape(text), soft_wrap=True) if is_shown else None)


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
    """Yield a sink (done, total, note) that draws one bar with the time left, or says it in lines."""
    with _bars(quiet) as bars:
        task, lines = bars.add_task(escape(title), total=None, note=""), _lines(bars, quiet)

        def hear(done: int, total: int, note: str) -> None:
            bars.update(task, completed=done, total=total, note=escape(note))
            lines.progress(title, done, total, note)

        yield hear


@contextlib.contextmanager
def run_listener(num_cases: int, *, quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows all cases, the stage at work of each, and one line per finished case."""
    from attnbench.running.listener import Listener

    with _bars(quiet) as bars:
        cases = bars.add_task("cases", total=num_cases, note="")
        stages: dict[str, tuple[str, TaskID]] = {}  # of each case at work, by its id
        going_on: dict[str, tuple[str, int, int, str]] = {}
        lines = _lines(bars, quiet)

        def show(whose: str, title: str, done: int, total: int, note: str) -> None:
            going_on[whose] = title, done, total, note
            lines.all_of(going_on.values())
            shown, task = stages.get(whose, ("", None))
            if task is None or shown != title:
                hide(whose)
                task = bars.add_task(escape(title), total=total, note="")
                stages[whose] = title, task
            bars.update(task, completed=done, total=total, note=escape(note))

        def hide(whose: str) -> None:
            if whose in stages:
                bars.remove_task(stages.pop(whose)[1])

        def finished(result: Result, cached: bool) -> None:
            bars.advance(cases)
            hide(result.case_id)
            going_on.pop(result.case_id, None)
            if not quiet:
                word = "cached" if cached else result.status
                reason = f": {result.reason}" if result.reason else ""
                bars.console.print(escape(f"{word:>8}  {result.label}{reason}"))

        def stage_ended(case: Case, what: str, seconds: float) -> None:
            lines.say(f"{case.label}: {what}, {duration(seconds)}")

        began: list[float] = []

        def profiling(done: int, total: int, note: str) -> None:
            began.append(time.monotonic())
            show("", "profile", done, total, note)
            if done == total and not note:  # later sittings are beyond what is counted, and have a note
                lines.say(f"profile, {duration(began[-1] - began[0])}")

        yield Listener(
            progress=lambda case, stage, *words: show(case.id, f"{case.label}: {stage}", *words),
            stage_ended=stage_ended,
            finished=finished,
            profiling=profiling,
        )
