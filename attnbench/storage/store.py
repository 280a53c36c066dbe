"""Content-addressed folders of finished stages.

Layout: `<root>/<stage>/<key>/`, finished when `done.json` stands in it. A stage that was killed has
no `done.json`; running it again continues from what its folder holds. One process at a time works in it:
whoever else needs the stage waits, and then reads what the first has finished or goes on where it ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from attnbench.errors import StorageError, cannot_read
from attnbench.progress import StageProgress
from attnbench.results import Measurement, Record
from attnbench.specs import Case, DataSpec
from attnbench.storage.atomic import remove_unfinished, storage_errors
from attnbench.storage.hashing import file_sha256
from attnbench.storage.locks import alone_in
from attnbench.storage.names import DONE, FEATURES
from attnbench.storage.records import read_record, write_record

if TYPE_CHECKING:
    import torch

Stage = Literal["prepare", "train", "sample", "evaluate", "diagnose"]
STAGES: tuple[Stage, ...] = ("prepare", "train", "sample", "evaluate")
"""Of every case; `stages_of` a case names those it asks for beside them."""
EVERY_STAGE: tuple[Stage, ...] = (*STAGES, "diagnose")
"""What may lie in a store."""
NOTICE = "notice"  # in place of a stage in a report: its note is to be shown even where no progress is
STAGE_ENDED = "stage ended"  # likewise: what was done in how many milliseconds, instead of `done`


def stages_of(case: Case) -> tuple[Stage, ...]:
    """Return the stages of a case in the order they run: `diagnose` only where it is asked for."""
    return STAGES if case.diagnose is None else EVERY_STAGE


class StageOutput(Record):
    """What a finished stage leaves for results and reports."""

    measurements: list[Measurement] = Field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    artefacts: dict[str, str] = Field(default_factory=dict)
    """Named files, relative to the stage's folder."""
    artefact_sha256: dict[str, str] = Field(default_factory=dict)
    """Of these files, by name; empty in what earlier versions wrote."""
    computed_with: dict[str, Any] = Field(default_factory=dict)
    """Settings outside the stage's key that held when it finished; whoever reads it may ask for others."""
    class_names: list[str] = Field(default_factory=list)
    """Of `prepare` alone: what label 0, 1, ... are called; empty in what earlier versions wrote."""


def _print_reason(reason: str) -> None:
    sys.stderr.write(f"attnbench: {reason}\n")
    sys.stderr.flush()


class Host(Record):
    """Another machine that lends processes to this run."""

    name: str
    address: str
    port: int
    processes: int
    key: str = Field(repr=False)
    """Hexadecimal; whoever knows it may ask for processes."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where stages keep their files, what they compute on, and who listens to their progress."""

    root: Path
    device: torch.device
    progress: StageProgress | None = None
    processes: int = 1
    """Processes that train one case together, on all machines."""
    hosts: tuple[Host, ...] = ()
    """The other machines, in the order of the ranks of their processes, which come after those here."""
    failing: Callable[[str], None] = _print_reason
    """Hears why this process is about to end, where its main thread hangs and cannot raise an error."""
    datasets: dict[DataSpec, Any] = field(default_factory=dict, repr=False, compare=False)
    """What `prepare` has loaded, for the stages after it."""
    notes: list[str] = field(default_factory=list, repr=False, compare=False)
    """What was found damaged and is made again: the report of this run says so."""

    def folder(self, stage: Stage, case: Case) -> Path:
        """Return (and create) the folder of one stage of one case."""
        path = self.root / stage / case.key(stage)
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Keep other processes from working on a stage while the block runs; waits for one that does.

        Look inside the block for what is finished. A finished stage needs no lock: nobody changes it, and it
        may lie where this user cannot write. For the process that started the others, not for those.
        """
        if read_output(folder) is not None:
            yield
            return
        with alone_in(folder, lambda text: self.report(NOTICE, 0, 0, text)):
            remove_unfinished(folder)
            yield

    def finished(self, folder: Path) -> StageOutput | None:
        """Return the output of a finished stage, else None; tells of a damaged one, which counts for none."""
        return read_output(folder, self.made_again)

    def made_again(self, path: Path) -> None:
        """Tell, at once and in the report, that a file of the store is damaged and is made again."""
        text = f"{path.relative_to(self.root)} was damaged and is made again"
        self.notes.append(text)
        self.report(NOTICE, 0, 0, text)

    def report(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Tell whoever listens how far a stage has come."""
        if self.progress is not None:
            self.progress(stage, done, total, note)


def features_folder(root: Path) -> Path:
    """Return where features and evaluation networks lie in a store, for all cases and commands."""
    return root / FEATURES


def read_output(folder: Path, damaged: Callable[[Path], None] = lambda path: None) -> StageOutput | None:
    """Return the output of a finished stage, or None while it is not finished; `damaged` as `read_record`."""
    return read_record(folder / DONE, StageOutput, damaged)


class FinishedStages:
    """Which stages in a store are finished: each is looked at once, and none whose folder is not there.

    For who asks of many cases at one time; what is finished later is not seen.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._begun: dict[str, frozenset[str]] = {}
        self._known: dict[tuple[Stage, str], bool] = {}

    def has(self, stage: Stage, key: str) -> bool:
        """Tell whether a stage is finished, and its record not damaged; raises StorageError."""
        if not self.is_begun(stage, key):
            return False
        if (stage, key) not in self._known:
            self._known[stage, key] = read_output(self._store / stage / key) is not None
        return self._known[stage, key]

    def is_begun(self, stage: Stage, key: str) -> bool:
        """Tell whether a stage has a folder; raises StorageError."""
        if stage not in self._begun:
            self._begun[stage] = frozenset(_names_in(self._store / stage))
        return key in self._begun[stage]


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(cannot_read(folder, error, "choose another place")) from error


def write_output(folder: Path, output: StageOutput) -> None:
    """Mark a stage as finished, with the checksums of its artefacts; raises StorageError or DataError."""
    output.artefact_sha256.update({n: file_sha256(folder / path) for n, path in output.artefacts.items()})
    write_record(folder / DONE, output)
