"""Kinds of faults: what is made ready around a struck suite, the blow, what is mended after a command."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jumping_clock

from attnbench.results import read_results
from attnbench.storage.names import RESULTS

Blow = Callable[[Any, random.Random], object]
"""Strikes a running command; raises one of NOBODY where there is nobody to strike at this moment."""
NOBODY = (IndexError, StopIteration, ProcessLookupError)
DISK_MIB = 24  # the features and a suite's files take 6
LONGEST_JUMP_S = 40 * 86400


class Fault:
    """A blow that needs nothing before or after it."""

    def __init__(self, name: str, blow: Blow, *, ends: bool = False) -> None:
        self.name, self._blow = name, blow
        self.ends = ends
        """Whether the command has nothing more to be struck after it."""

    @contextlib.contextmanager
    def around(self, runs: Path) -> Iterator[None]:
        """Make ready what it needs in a runs folder that is already there."""
        yield

    def strike(self, command: Any, chance: random.Random) -> bool:
        """Strike; returns whether there was somebody to strike."""
        try:
            self._blow(command, chance)
        except NOBODY:
            return False
        return True

    def mend(self) -> None:
        """Undo, after the command's end, what the next one could not live with."""

    def problems(self, runs: Path) -> Iterator[str]:
        """Yield why it may have been no fault at all."""
        yield from ()


class FullDisk(Fault):
    """The runs folder is a small file system, which is full from some moment on until it is mended."""

    def __init__(self) -> None:
        super().__init__("full disk", self._fill, ends=True)
        self._runs = Path()

    @contextlib.contextmanager
    def around(self, runs: Path) -> Iterator[None]:
        self._runs, aside = runs, runs.with_suffix(".aside")
        runs.rename(aside)
        runs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "attnbench", runs], check=True)
        try:
            shutil.copytree(aside, runs, dirs_exist_ok=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", runs], check=True)
            shutil.rmtree(aside)

    def _fill(self, command: Any, chance: random.Random) -> None:
        room = os.statvfs(self._runs)
        left = chance.choice((0, 1, 16, 40))  # pages: some files fit, or a part of one
        with (self._runs / "others").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail - left) * room.f_bsize)

    def mend(self) -> None:
        (self._runs / "others").unlink(missing_ok=True)


class JumpingClock(Fault):
    """The wall clock is moved by up to 40 days, back or on, and with it the times of the store's files."""

    def __init__(self, offset: Path) -> None:
        super().__init__("clock", self._jump)
        self._offset, self._runs = offset, Path()
        self._clock: jumping_clock.Clock | None = None

    @contextlib.contextmanager
    def around(self, runs: Path) -> Iterator[None]:
        self._runs = runs
        with jumping_clock.jumping(self._offset) as self._clock:
            yield

    def _jump(self, command: Any, chance: random.Random) -> None:
        assert self._clock is not None
        by = chance.choice((-1, 1)) * chance.randrange(60, LONGEST_JUMP_S)
        self._clock.set(self._clock.offset_s + by)
        jumping_clock.move_files(self._runs, by)

    def problems(self, runs: Path) -> Iterator[str]:
        mark = runs.with_suffix(".now")
        mark.touch()  # by the kernel's clock
        now = datetime.fromtimestamp(mark.stat().st_mtime, UTC)
        mark.unlink()
        created = [r.created for path in runs.glob(f"*/{RESULTS}") for r in read_results(path)]
        if not any(abs(datetime.fromisoformat(text) - now) > timedelta(seconds=30) for text in created):
            yield f"no result says that the clock has jumped: {created}"


def pause(pids: Sequence[int], chance: random.Random, most_s: float) -> None:
    """Stop a process for a while, as on a node that is slow; raises IndexError where there is none."""
    pid = pids[chance.randrange(len(pids))] if pids else [][0]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(chance.uniform(0.1, most_s))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
