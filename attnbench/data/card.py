"""The card of a prepared training set: what it holds, where it comes from, and a checksum of every file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from attnbench.data.dataset import PartName
from attnbench.errors import DataError, cannot_read
from attnbench.storage.hashing import file_sha256

CARD = "card.json"
UNFINISHED = "unfinished"
REQUEST = "request"  # in the folder of unfinished work: the identity of what was asked for
PARTS: tuple[PartName, ...] = ("train", "held-out")


class Described(BaseModel):
    """Base of what a card says; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(Described):
    """A file of the set, relative to its folder."""

    name: str
    num_bytes: int
    sha256: str


class LabelFile(Described):
    """The file that says the classes of the held-out images."""

    name: str
    sha256: str


class SourceFiles(Described):
    """The source files of a shard as they were read."""

    written: str
    """SHA-256 of their names, sizes and the times at which they were written."""
    sha256: str
    """Of the hashes of their bytes, in order."""


class Shard(StoredFile):
    """Images of consecutive source files, uint8 [num_images, side, side, 3], without the unreadable ones."""

    num_images: int
    unreadable: dict[str, str] = {}
    """Source files without an image here, with the reason."""
    changes: dict[str, int] = {}
    """How many images lost or converted what of their files; `data.content` says how."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out changes where there are none: a card says what it said before they were counted."""
        return {name: value for name, value in written(self).items() if name != "changes" or value}

    def faults(self, above: str | None = None) -> list[str]:
        """Return one line per unreadable file, its name below that of a source where one is given."""
        start = f"{above}/" if above else ""
        return [f"{start}{name}: {reason}" for name, reason in self.unreadable.items()]


class PreparedPart(Described):
    """The training images, or the held-out ones."""

    num_images: int
    per_class: dict[str, int]
    labels: StoredFile
    """int64 [num_images]; a label is the class's place in `classes`."""
    shards: list[Shard]


class Card(Described):
    """Everything that is known about a prepared training set."""

    format: Literal["attnbench-images-1"] = "attnbench-images-1"
    request: str
    """SHA-256 of all settings and of the names and sizes of all source files."""
    source: str
    licence: str
    image_size: int
    channels: Literal[3] = 3
    crop: str
    normalisation: str
    classes: list[str]
    class_rule: str
    class_seed: int | None
    held_out_rule: str
    held_out_source: str | None = None
    """Where the held-out images come from, if not from `source`."""
    held_out_labels: LabelFile | None = None
    """Where their classes come from, if not from folders."""
    parts: dict[PartName, PreparedPart]
    num_unreadable: int
    unused_parts: dict[str, int]
    """Images of parts of the source that were not asked for."""
    num_outside: int
    """Files of the source that lie in no class folder or are no images; `outside` names the first ones."""
    outside: list[str]
    attnbench: str
    pillow: str
    numpy: str
    source_files: dict[str, SourceFiles] = {}
    """By shard; a set that an earlier attnbench made does not say it."""

    def changes(self) -> dict[str, int]:
        """Return how many images lost or converted what of their files, in words, the most frequent first."""
        counts = Counter[str]()
        for part in self.parts.values():
            for shard in part.shards:
                counts.update(shard.changes)
        return dict(counts.most_common())

    def unreadable(self) -> list[str]:
        """Return one line per source file that failed to decode: its name and the reason."""
        lines = []
        for name, part in self.parts.items():
            above = self.held_out_source if name == "held-out" else None
            lines += [line for shard in part.shards for line in shard.faults(above)]
        return lines

    def files(self) -> Iterator[StoredFile]:
        """Yield every file the set consists of, beside the card."""
        for part in self.parts.values():
            yield from (*part.shards, part.labels)


def read_card(folder: Path) -> Card:
    """Read the card of a finished set; raises DataError where there is none or it contradicts itself."""
    path = folder / CARD
    if not path.is_file():
        if (folder / UNFINISHED / REQUEST).is_file():  # not where the source was refused
            raise DataError(f"{folder} is not finished; run the same `attnbench data prepare` again")
        raise DataError(
            f"{folder} is no prepared training set: it has no {CARD}; make one with "
            "`attnbench data prepare SOURCE --to FOLDER`"
        )
    try:
        card = Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(cannot_read(path, error, "prepare the set again into a new folder")) from error
    except ValidationError as error:
        raise DataError(f"{path} cannot be used: {error}; prepare the set again into a new folder") from error
    for name, part in card.parts.items():
        if not part.num_images == sum(s.num_images for s in part.shards) == sum(part.per_class.values()):
            raise DataError(f"{path}: the counts of {name} do not agree; prepare the set again")
    return card


def check_sizes(folder: Path, card: Card) -> None:
    """Raise DataError where a file of the set is missing or has another size than the card says."""
    for stored in card.files():
        if fault := _size_fault(folder, stored):
            raise DataError(f"{folder / stored.name} {fault}; remove the folder and prepare the set again")


def verify(folder: Path, progress: Callable[[int, int, str], None]) -> list[str]:
    """Compare every file with the card; return one line per file that is missing, cut or changed.

    Raises DataError when there is no usable card.
    """
    stored = list(read_card(folder).files())
    faults = []
    for number, file in enumerate(stored):
        progress(number, len(stored), file.name)
        fault = _size_fault(folder, file)
        if fault is None and (got := file_sha256(folder / file.name)) != file.sha256:
            fault = f"has SHA-256 {got}, the card says {file.sha256}"
        if fault is not None:
            faults.append(f"{file.name} {fault}")
    progress(len(stored), len(stored), "")
    return faults


def _size_fault(folder: Path, stored: StoredFile) -> str | None:
    try:
        size = (folder / stored.name).stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if size == stored.num_bytes else f"has {size} bytes, the card says {stored.num_bytes}"
