"""Which cases runs have begun: what a killed run leaves is known by it, though no result names it yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from attnbench.errors import StorageError
from attnbench.results import Record
from attnbench.specs import Case
from attnbench.storage.names import CLAIM, CLAIMS
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import Stage, stages_of


class Claim(Record):
    """A case that a run has begun, and the folders of its stages."""

    suite: str
    label: str
    keys: dict[Stage, str]
    teacher: dict[Stage, str] = Field(default_factory=dict)
    """Those of the case of the same suite that teaches it; empty in what earlier versions wrote."""

    @property
    def places(self) -> set[tuple[str, str]]:
        """All of these folders, as stage and name."""
        return {*self.keys.items(), *self.teacher.items()}


def keys_of(case: Case) -> dict[Stage, str]:
    """Return the name of the folder of each of a case's stages."""
    return {stage: case.key(stage) for stage in stages_of(case)}


def teacher_keys_of(case: Case) -> dict[Stage, str]:
    """Return likewise what a case needs of the one of its suite that teaches it; empty where none does."""
    teacher = case.teacher.trains_here if case.teacher is not None else None
    needed: tuple[Stage, ...] = ("prepare", "train")
    return {} if teacher is None else {stage: teacher.key(stage) for stage in needed}


def claim_folder(case: Case, store: Path) -> Path:
    """Return the folder that a run holds while it works on a case."""
    return store / CLAIMS / case.key("evaluate")


def note_claim(case: Case, store: Path) -> None:
    """Keep beside the lock of a case which stages it is made of; for who holds it."""
    path, claim = (
        claim_folder(case, store) / CLAIM,
        Claim(suite=case.suite, label=case.label, keys=keys_of(case), teacher=teacher_keys_of(case)),
    )
    with suppress(StorageError):  # a full disk is the stages' to tell
        if read_record(path, Claim) != claim:
            write_record(path, claim)


def claims(store: Path) -> Iterator[Claim]:
    """Yield every case that was begun below a store; a damaged note says nothing."""
    for path in sorted((store / CLAIMS).glob(f"*/{CLAIM}")):
        claim = read_record(path, Claim)
        if claim is not None:
            yield claim
