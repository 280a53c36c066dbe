"""Measurements, environments and results, and the append-only JSON lines they live in.

Format history: 1 (first).
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict

from attnbench.devices import available_cores
from attnbench.errors import StorageError, UserInputError, cannot_write

FORMAT = 1
Status = Literal["ok", "skipped", "failed"]
Direction = Literal["lower", "higher", "none"]
PACKAGES = ("attnbench", "torch", "torchvision", "timm", "diffusers", "numpy", "pydantic", "fvcore")


class Record(BaseModel):
    """Base of everything written to results.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Measurement(Record):
    """One named quantity with its unit and all raw values; the median or mean is a reader's choice."""

    name: str
    unit: str = ""
    values: list[float]
    n: int | None = None
    """Images, repetitions or whatever stands behind the number."""
    better: Direction = "none"
    interval: tuple[float, float] | None = None
    """95 % interval of the value, where its uncertainty is known (of a quality metric: over images)."""
    note: str = ""

    @property
    def value(self) -> float:
        """Median of the raw values; NaN where nothing could be measured."""
        return statistics.median(self.values) if self.values else math.nan


class Environment(Record):
    """Where and with what a result was computed."""

    python: str
    platform: str
    cpu: str
    cpu_count: int
    threads: int
    memory_gib: float
    device: str
    packages: dict[str, str]
    git_commit: str
    git_dirty: bool


class Result(Record):
    """One case's outcome: what was asked, what came out, where."""

    format: int = FORMAT
    case_id: str
    suite: str
    label: str
    axes: dict[str, str] = {}
    status: Status
    reason: str = ""
    measurements: list[Measurement] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    """Named curves, e.g. `loss`: pairs of (step, value)."""
    artefacts: dict[str, str] = {}
    """Named files relative to the run directory, e.g. `grid`: a PNG."""
    case: dict[str, Any] = {}
    environment: Environment
    created: str = ""

    def measurement(self, name: str) -> Measurement | None:
        """Return the measurement called `name`, or None."""
        return next((m for m in self.measurements if m.name == name), None)


def timestamp() -> str:
    """Return the present time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def append_result(path: Path, result: Result) -> None:
    """Append one result as one line; a reader never sees half a line as a result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _cut_stump(file)
            file.write(result.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{cannot_write(path, error)}, then run the same command again") from error


def _cut_stump(file: BinaryIO) -> None:
    """Remove a last line without its end, left by a writer that was killed: no result is in it."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


def read_results(path: Path) -> list[Result]:
    """Read every whole line; a last line cut by a crash is dropped, any other bad line is an error.

    Raises UserInputError naming file and line.
    """
    if not path.exists():
        raise UserInputError(f"no results at {path}; run the suite first")
    lines = path.read_text(encoding="utf-8").split("\n")
    return list(_parse(path, lines))


def _parse(path: Path, lines: list[str]) -> Iterator[Result]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the writer was killed
                return
            raise UserInputError(f"{path}:{number}: not a result: {error}") from error
        if raw.get("format") != FORMAT:
            raise UserInputError(
                f"{path}:{number}: format {raw.get('format')!r}, this attnbench reads {FORMAT}"
            )
        yield Result.model_validate(raw)


def latest(results: list[Result]) -> list[Result]:
    """Keep the last result of each case, in the order the cases first appeared."""
    by_id: dict[str, Result] = {}
    for result in results:
        by_id[result.case_id] = result
    return list(by_id.values())


@functools.cache
def environment(device: str = "cpu", threads: int = 0) -> Environment:
    """Describe this process's machine, packages and source state."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit, dirty = _git_state(Path(__file__).resolve().parent)
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_name(),
        cpu_count=os.cpu_count() or 1,
        threads=threads or available_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        device=device,
        packages=versions,
        git_commit=commit,
        git_dirty=dirty,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _git_state(folder: Path) -> tuple[str, bool]:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "--error-unmatch", str(folder / "results.py")):
            return "", False  # installed into somebody else's repository
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return "", False
