"""What the scripts of this folder share: a course that ends in time, results line by line, a table last.

A script's calls stand in the order of what matters most. Every result is written at once, a JSON object a
line of a file under $OUT, so that whatever ends a script leaves what it had; a script started again reads
that file and does only what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESERVE_S = 5.0  # for the table
SAFETY = 1.1  # of an estimate
Record = dict[str, Any]


class TimeUp(BaseException):
    """The time limit; no `except Exception` on the way up takes it for a failed row."""


@dataclass(frozen=True)
class Call:
    """One thing to do: its seconds on an H100, guessed."""

    section: str
    estimate_s: float
    settings: Record = field(default_factory=dict)


@dataclass
class Schedule:
    """Which calls still fit: guesses are corrected by how long those before took."""

    budget_s: float
    now: Callable[[], float] = time.monotonic
    guessed_s: float = 0.0
    took_s: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def left_s(self) -> float:
        """Seconds until the table must be written."""
        return self.start + self.budget_s - RESERVE_S - self.now()

    def expected_s(self, call: Call) -> float:
        """Return the guess, by the pace so far; one short call does not yet make a pace."""
        pace = (self.took_s + 20) / (self.guessed_s + 20)
        return SAFETY * pace * call.estimate_s

    def run(self, calls: Sequence[Call], do: Callable[[Call, float], None]) -> list[tuple[Call, str]]:
        """Do each call that fits, in order; return those left out and why. A later one may still fit."""
        left_out = []
        for call in calls:
            expected, left = self.expected_s(call), self.left_s
            if expected > left:
                left_out.append((call, f"needs {expected:.0f} s, {max(left, 0):.0f} s are left"))
                continue
            began = self.now()
            try:
                with time_limit(left):
                    do(call, left)
            except TimeUp:
                left_out.append((call, f"not finished within {left:.0f} s"))
            self.guessed_s += call.estimate_s
            self.took_s += self.now() - began
        return left_out


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in here after so many seconds."""

    def ring(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def out_folder() -> Path:
    """Return the folder for results: $OUT, or the present one."""
    folder = Path(os.environ.get("OUT") or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Results:
    """A script's records in a file of lines, the last of each name; a line that was cut off is left out."""

    def __init__(self, path: Path) -> None:
        known: dict[str, Record] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    known.pop(record["name"], None)
                    known[record["name"]] = record
        self.records = list(known.values())
        self._file = path.open("w", encoding="utf-8")
        for record in self.records:
            self._write(record)

    def keep(self, name: str, record: Record) -> None:
        """Write one record at once; it replaces an earlier one of its name."""
        self.records = [one for one in self.records if one["name"] != name]
        self.records.append({"name": name, **record})
        self._write(self.records[-1])

    def has(self, name: str) -> bool:
        """Whether there is such a record, without an error."""
        return any(one["name"] == name and not one.get("error") for one in self.records)

    def _write(self, record: Record) -> None:
        print(json.dumps(record), file=self._file, flush=True)


def reason(error: BaseException) -> str:
    """Return an error as the reason of a row: its class and its first line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def columns(lines: Iterable[Sequence[object]]) -> str:
    """Return lines of cells under each other, numbers with four digits."""
    shown = [[cell(one) for one in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    )


def cell(value: object) -> str:
    """Return three or four digits, the text itself, or nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def import_tests() -> None:
    """Make the tests' references importable."""
    for path in (str(ROOT), str(ROOT / "tests")):
        if path not in sys.path:
            sys.path.insert(0, path)
