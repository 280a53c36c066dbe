"""What is asked of `attnbench data prepare`, and the folder it is made in: claimed, begun or finished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL

from attnbench.data.card import CARD, PARTS, REQUEST, UNFINISHED, Card, check_sizes, read_card
from attnbench.data.held_out import HeldOutSource
from attnbench.data.image_sources import name_of
from attnbench.data.layout import printable
from attnbench.data.selection import Selected, Selection
from attnbench.errors import DataError, UserInputError
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.names import LOCK

FILES_PER_SHARD = 512  # 96 MiB at 256 px; a killed run decodes at most these again


@dataclass(frozen=True, kw_only=True)
class PreparationRequest:
    """A training set to be made of `source` in `folder`."""

    source: Path
    folder: Path
    image_size: int = 256
    selection: Selection = field(default_factory=Selection)
    held_out_from: Path | None = None
    """A second source, all of whose images of the chosen classes are held out."""
    labels: Path | None = None
    """The file with the classes of a `held_out_from` that has no class folders."""
    max_unreadable: float = 0.001
    """Largest share of files that may fail to decode."""
    licence: str = "not stated; that of the source"
    workers: int = 1
    """Threads that decode; changes no byte."""

    def __post_init__(self) -> None:
        """Refuse two answers to one question, and labels of nothing."""
        if self.held_out_from is not None and self.selection.held_out is not None:
            raise UserInputError("--held-out and --held-out-from both choose held-out images; give one")
        if self.labels is not None and self.held_out_from is None:
            raise UserInputError("--labels says the classes of --held-out-from's images; give that as well")

    @property
    def source_name(self) -> str:
        """Name of the source's file or folder; also of `.`."""
        return printable(name_of(self.source))


def _check_sources(request: PreparationRequest) -> None:
    what = "a folder with one sub-folder per class, or its tar"
    if not request.source.exists():
        raise DataError(f"{request.source} does not exist; SOURCE is {what}")
    if request.held_out_from is not None and not request.held_out_from.exists():
        raise DataError(
            f"--held-out-from {request.held_out_from} does not exist; it is {what}, or images with --labels"
        )
    if request.labels is not None and not request.labels.is_file():
        raise DataError(
            f"--labels {request.labels} is no file; give ILSVRC2012_devkit_t12.tar.gz, LOC_val_solution.csv, "
            "or lines of `file name,class folder`"
        )
    folder = request.folder.resolve()
    for path in filter(None, (request.source, request.held_out_from)):
        if folder.is_relative_to(path.resolve()) or path.resolve().is_relative_to(folder):
            raise UserInputError(f"--to {request.folder} and {path} lie in each other; name another folder")


def check(request: PreparationRequest) -> None:
    """Refuse sources that are not there and a folder that is in use for something else."""
    _check_sources(request)
    if request.folder.exists() and not request.folder.is_dir():
        raise UserInputError(f"--to {request.folder} is a file; name a folder")
    ours = any((request.folder / name).exists() for name in (UNFINISHED, CARD))
    if not ours and request.folder.is_dir() and any(p.name != LOCK for p in request.folder.iterdir()):
        raise UserInputError(f"--to {request.folder} holds other files; name a new or an empty folder")


def claim(request: PreparationRequest) -> Path:
    """Make the folder, clear what a killed run has left, return where unfinished work lies."""
    scratch = request.folder / UNFINISHED
    for left_over in request.folder.rglob(".*.part"):
        left_over.unlink(missing_ok=True)
    for folder in (scratch, *(request.folder / part for part in PARTS)):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    return scratch


def identity_of(
    request: PreparationRequest, selected: Selected, elsewhere: HeldOutSource | None = None
) -> str:
    """Return the SHA-256 of everything that the set's bytes depend on."""
    settings = [request.source_name, request.image_size, request.licence, FILES_PER_SHARD]
    versions = [version("attnbench"), PIL.__version__, np.__version__]
    rules = [selected.classes, selected.class_rule, selected.held_out_rule]
    labels = [elsewhere.labels.sha256] if elsewhere and elsewhere.labels else []
    digest = hashlib.sha256(json.dumps([settings, versions, rules, *labels]).encode())
    for files in (selected.train, selected.held_out):
        for file in files:
            line = f"{file.label} {file.entry.size} {file.entry.name}\0"
            digest.update(line.encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def finished(folder: Path, identity: str) -> Card | None:
    """Return the card of a finished set; refuse a folder begun or finished with other settings."""
    asked = folder / UNFINISHED / REQUEST
    card = read_card(folder) if (folder / CARD).is_file() else None
    before = asked.read_text() if asked.is_file() else None
    if (card.request if card else before) not in (None, identity):
        raise DataError(
            f"{folder} holds a set made with other settings, of other files, or by another version of "
            "attnbench, pillow or numpy; name another folder with --to, or remove this one"
        )
    if card is not None:
        check_sizes(folder, card)
    atomic_write(asked, identity.encode())
    return card
