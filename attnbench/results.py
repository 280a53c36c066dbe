"""Measurements, environments and results, and the append-only JSON lines they live in.

Format history: 1 (first); 2 (timed quantities keep their rounds, `Measurement.rounds`);
3 (rounds name their process, `Measurement.round_processes`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from attnbench.devices import available_cores
from attnbench.errors import StorageError, UserInputError, cannot_write

FORMAT = 3
READ_FORMATS = (1, 2, FORMAT)
_AS_WRITTEN = tuple(b'{"format":%d,' % number for number in READ_FORMATS)
_BLOCK = 65_536
Status = Literal["ok", "skipped", "failed"]
Direction = Literal["lower", "higher", "none"]
PACKAGES = ("attnbench", "torch", "torchvision", "timm", "diffusers", "numpy", "pydantic", "fvcore")


class Record(BaseModel):
    """Base of everything written to results.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


AnyRecord = TypeVar("AnyRecord", bound=Record)
_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{64})"\}$')


def with_checksum(record: Record, place: str = "") -> bytes:
    """Return a record as JSON whose last entry, `checksum`, is the SHA-256 of what stands before it.

    `place` is part of the checksum, so that a record is known to lie where it belongs.
    """
    content = record.model_dump_json().encode()
    return content[:-1] + f',"checksum":"{_sha256(content, place)}"}}'.encode()


def content_of(data: bytes, place: str = "") -> bytes:
    """Return what `with_checksum` was given, as JSON; raises ValueError where it has changed since.

    What an earlier version wrote has no checksum and is taken as it is.
    """
    data = data.strip()
    found = _CHECKSUM.search(data)
    if found is None:
        return data
    content = data[: found.start()] + b"}"
    if found[1].decode() != _sha256(content, place):
        raise ValueError("its content does not have the checksum stored in it")
    return content


def checked_record(data: bytes, kind: type[AnyRecord], place: str = "") -> AnyRecord:
    """Read what `with_checksum` wrote; raises ValueError where it is damaged."""
    try:
        return kind.model_validate_json(content_of(data, place))
    except ValidationError as error:
        raise ValueError(_in_one_line(error)) from error


def _sha256(content: bytes, place: str) -> str:
    return hashlib.sha256(place.encode() + b"\n" + content).hexdigest()


def _in_one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    return " ".join([*(f"{part}:" for part in first["loc"]), first["msg"]])


class Measurement(Record):
    """One named quantity with its unit and all raw values; the median or mean is a reader's choice."""

    name: str
    unit: str = ""
    values: list[float]
    n: int | None = None
    """Images, repetitions or whatever stands behind the number."""
    better: Direction = "none"
    interval: tuple[float, float] | None = None
    """95 % interval of the value, where its uncertainty is known (of a quality metric over images, of a
    timed quantity over rounds)."""
    note: str = ""
    rounds: list[list[float]] = []
    """Of a timed quantity: all raw samples, by the interleaved rounds they were taken in; `values` are the
    medians of those rounds that are ranked."""
    clean_rounds: list[bool] = []
    """Of each round, whether the machine left it alone."""
    round_processes: list[int] = []
    """Of each round, which of the row's processes, one after another, took it; empty: one took all."""
    session: str = ""
    """Rounds of one session are pairs: round i of one case and round i of another were taken side by side."""
    disturbed: str = ""
    """Why this value is not to be ranked; empty where it may be."""

    @model_validator(mode="after")
    def _check_rounds(self) -> Measurement:
        if len(self.clean_rounds) != len(self.rounds):
            raise ValueError(f"{len(self.clean_rounds)} clean_rounds for {len(self.rounds)} rounds")
        if self.round_processes and len(self.round_processes) != len(self.rounds):
            raise ValueError(f"{len(self.round_processes)} round_processes for {len(self.rounds)} rounds")
        return self

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
    note: str = ""


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
            file.write(with_checksum(result) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{cannot_write(path, error)}, then run the same command again") from error


def _cut_stump(file: BinaryIO) -> None:
    """Remove a last line without its end, left by a writer that was killed: no result is in it."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    whole = _end_of_last_line(file, size)
    if whole < size:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """Return where the last whole line ends, reading backwards: the file may be large, its end is not."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def read_results(path: Path) -> list[Result]:
    """Read every whole line; a last line cut by a crash is dropped, any other bad line is an error.

    Raises UserInputError naming file, line and what to do.
    """
    return list(each_result(path))


def each_result(path: Path) -> Iterator[Result]:
    """Read as `read_results` does, but one line after the other: a file may hold more than memory."""
    if not path.exists():
        raise UserInputError(f"no results at {path}; run the suite first")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield result_of(line)
            except UserInputError as error:
                raise UserInputError(f"{path}:{number}: {error}") from error
            except ValueError as error:
                if not line.endswith(b"\n"):  # the writer was killed
                    break
                raise UserInputError(
                    f"{path}:{number}: not a result: {error}; run the suite again, which sets such lines "
                    "aside and writes what is finished once more. If you changed the line yourself, remove "
                    'its entry "checksum": then it is taken as it is'
                ) from error


def result_of(line: bytes) -> Result:
    """Read one line of results; raises ValueError where it is damaged, UserInputError for another format."""
    content = content_of(line)
    if content.startswith(_AS_WRITTEN):
        # several times faster than by way of Python's objects, which say better what is wrong
        with contextlib.suppress(ValidationError):
            return Result.model_validate_json(content)
    raw = json.loads(content)
    if not isinstance(raw, dict):
        raise ValueError(f"a {type(raw).__name__} in place of a record")
    if raw.get("format") not in READ_FORMATS:
        known = f"{', '.join(map(str, READ_FORMATS[:-1]))} and {READ_FORMATS[-1]}"
        raise UserInputError(
            f"format {raw.get('format')!r}, this attnbench reads {known}; use the version that wrote it, or "
            "remove the line"
        )
    try:
        return Result.model_validate(raw)
    except ValidationError as error:
        raise ValueError(_in_one_line(error)) from error


def latest(results: Iterable[Result]) -> list[Result]:
    """Keep the last result of each case, in the order the cases first appeared."""
    by_id: dict[str, Result] = {}
    for result in results:
        by_id[result.case_id] = result
    return list(by_id.values())


@functools.cache
def environment(device: str = "cpu", threads: int = 0) -> Environment:
    """Describe this process's machine, packages and source state."""
    commit, dirty = _git_state(Path(__file__).resolve().parent)
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        cpu_count=os.cpu_count() or 1,
        threads=threads or available_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        device=device,
        packages=versions(PACKAGES),
        git_commit=commit,
        git_dirty=dirty,
    )


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of these packages that are installed."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_name() -> str:
    """Return what the CPU calls itself."""
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
