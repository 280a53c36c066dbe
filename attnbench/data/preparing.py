"""Making a training set: choose, decode in parallel, write shards that are whole or absent, card last.

Layout: `train/images-00000.npy` ..., `train/labels.npy`, the same below `held-out/`, and `card.json`. While
a set is made, `unfinished/` holds what was asked for and one record per finished shard; a shard covers
a fixed run of source files and depends on nothing else, so that a killed run goes on at the next one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from pydantic import ValidationError

from attnbench.data.card import (
    CARD,
    PARTS,
    UNFINISHED,
    Card,
    PreparedPart,
    Shard,
    SourceFiles,
    StoredFile,
)
from attnbench.data.dataset import PartName
from attnbench.data.held_out import HeldOutSource, check_apart, open_held_out
from attnbench.data.image_sources import Source, is_image, open_source
from attnbench.data.layout import TRAIN, Layout, arrange, is_part, printable
from attnbench.data.request import FILES_PER_SHARD, PreparationRequest, check, claim, finished, identity_of
from attnbench.data.selection import LabelledFile, Selected, select
from attnbench.data.shard_decoding import content_sha256, decode_all
from attnbench.errors import DataError, StorageError
from attnbench.progress import Progress
from attnbench.storage.atomic import atomic_path, atomic_write
from attnbench.storage.hashing import file_sha256
from attnbench.storage.locks import alone_in

NAMED = 3  # unreadable files that an error shows
CROP = "halved with a box filter while twice too large, bicubic resize, centre crop (ADM's center_crop_arr)"
NORMALISATION = "uint8 as stored; x / 127.5 - 1 when a model reads it"


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one run does: the chosen files of an open source, and where they go."""

    request: PreparationRequest
    source: Source
    elsewhere: HeldOutSource | None
    """Where held-out images come from, if not from `source`."""
    selected: Selected
    progress: Progress

    @property
    def total(self) -> int:
        return len(self.selected.train) + len(self.selected.held_out)

    def shards(self) -> Iterator[tuple[PartName, int, Sequence[LabelledFile]]]:
        """Yield the part, the number and the source files of every shard."""
        for part, files in zip(PARTS, (self.selected.train, self.selected.held_out), strict=True):
            for number, start in enumerate(range(0, len(files), FILES_PER_SHARD)):
                yield part, number, files[start : start + FILES_PER_SHARD]

    def of_part(self, part: PartName) -> tuple[Source, str | None]:
        """Return what a part is read from, and its name where that is not the one source of all."""
        if part == TRAIN or self.elsewhere is None:
            return self.source, None
        return self.elsewhere.source, self.elsewhere.name


def prepare(
    request: PreparationRequest, progress: Progress, notice: Callable[[str], None] = lambda text: None
) -> Card:
    """Make the set, or go on where a killed run stopped, or return the card of a finished one.

    Another command that makes a set in the same folder is waited for; `notice` hears, again and again, for
    which one, and once, before an image is written, what of the source is left out. Raises DataError for a
    source or folder that cannot be used, for too many unreadable images, and where the files of a finished
    set's source have changed since; StorageError where the set does not fit.
    """
    check(request)
    with alone_in(request.folder, notice):
        return _prepare(request, progress, notice)


def _prepare(request: PreparationRequest, progress: Progress, notice: Callable[[str], None]) -> Card:
    scratch = claim(request)
    progress(0, 0, "listing the source")
    with (
        open_held_out(request.held_out_from, request.labels, scratch) as elsewhere,
        open_source(request.source, scratch) as source,
    ):
        layout = arrange(source.entries(), str(request.source), lambda entry: is_image(source, entry))
        selected = select(layout, request.selection, elsewhere)
        if elsewhere is not None:
            train, held_out = ((f.entry for f in files) for files in (selected.train, selected.held_out))
            check_apart(source, train, elsewhere, held_out)
        identity = identity_of(request, selected, elsewhere)
        card = finished(request.folder, identity)
        work = _Work(
            request=request, source=source, elsewhere=elsewhere, selected=selected, progress=progress
        )
        if card is None:
            _say_what_is_left_out(work, layout, notice)
            parts = _write_parts(work)
            card = _card(work, layout, identity, parts)
            _write_card(request.folder, card)
        elif (now := _as_written_now(work, card)) != card.source_files:
            card = card.model_copy(update={"source_files": now})
            _write_card(request.folder, card)
    shutil.rmtree(scratch)
    return card


def _write_card(folder: Path, card: Card) -> None:
    atomic_write(folder / CARD, (card.model_dump_json(indent=1) + "\n").encode())


def _say_what_is_left_out(work: _Work, layout: Layout, notice: Callable[[str], None]) -> None:
    """Say in numbers what of the sources is not taken, and which classes look like parts of a set."""
    elsewhere = work.elsewhere
    for name, words in (
        (work.request.source_name, layout.left_out),
        (elsewhere.name if elsewhere else "", elsewhere.left_out if elsewhere else ()),
    ):
        for sentence in words:
            notice(f"left out of {name}: {sentence}")
    if doubtful := [name for name in work.selected.classes if is_part(name)]:
        notice(f"taken for classes, not for parts of the set: {', '.join(doubtful)}")


def _written(files: Sequence[LabelledFile]) -> str:
    """Return a hash that changes when a file is written again, even with as many bytes."""
    digest = hashlib.sha256()
    for file in files:
        entry = file.entry
        digest.update(f"{entry.size} {entry.changed_ns} {entry.name}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _as_written_now(work: _Work, card: Card) -> dict[str, SourceFiles]:
    """Return what a finished set's card says of its source files, with the times at which they were written.

    A copy or another disk changes times alone: files of other times are read once more and compared. Raises
    DataError for other content. Nothing is known where an earlier attnbench made the set.
    """
    found = dict(card.source_files)
    with ThreadPoolExecutor(work.request.workers) as pool:
        for part, number, files in work.shards():
            name = _shard_name(part, number)
            if name not in found or found[name].written == (written := _written(files)):
                continue
            work.progress(number, 0, f"comparing the source of {name}")
            sha256 = content_sha256(work.of_part(part)[0], files, pool)
            if sha256 != found[name].sha256:
                first, last = printable(files[0].entry.name), printable(files[-1].entry.name)
                raise DataError(
                    f"files of {work.request.source_name} have changed since {work.request.folder} was made "
                    f"of them, between {first} and {last}: the set holds the old images; name a new folder "
                    "with --to, or remove this one"
                )
            found[name] = SourceFiles(written=written, sha256=sha256)
    return found


def _write_parts(work: _Work) -> dict[PartName, PreparedPart]:
    _check_space(work)
    parts: dict[PartName, PreparedPart] = {}
    with ThreadPoolExecutor(work.request.workers) as pool:
        unreadable: list[str] = []
        done = 0
        shards: dict[PartName, list[Shard]] = {part: [] for part in PARTS}
        for part, number, chunk in work.shards():
            shard = _write_shard(work, part, number, chunk, pool)
            shards[part].append(shard)
            unreadable += shard.faults(work.of_part(part)[1])
            _check_unreadable(unreadable, work)
            done += len(chunk)
            note = f"{len(unreadable)} unreadable" if unreadable else ""
            work.progress(done, work.total, note)
        for part, files in zip(PARTS, (work.selected.train, work.selected.held_out), strict=True):
            parts[part] = _describe(work, part, files, shards[part])
    return parts


def _check_space(work: _Work) -> None:
    folder = work.request.folder
    there = sum(path.stat().st_size for part in PARTS for path in (folder / part).iterdir())
    needed = work.total * work.request.image_size**2 * 3 - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"the set needs {needed / 2**30:.1f} GiB more and {folder} has {free / 2**30:.1f} GiB free; "
            "free some space or name another place with --to"
        )


def _write_shard(
    work: _Work, part: PartName, number: int, files: Sequence[LabelledFile], pool: ThreadPoolExecutor
) -> Shard:
    """Decode one shard's files, unless a run before has and they were not written again since."""
    folder, written = work.request.folder, _written(files)
    record, of_source = (_record(folder, part, number, what) for what in ("", "-source"))
    shard, before = _recorded(folder, record), _source_files(of_source)
    if shard is None or (before is not None and before.written != written):
        content = decode_all(work.of_part(part)[0], files, work.request.image_size, pool)
        record.unlink(missing_ok=True)  # it is of other files than those that stand beside it next
        sources = SourceFiles(written=written, sha256=content.sha256)
        atomic_write(of_source, sources.model_dump_json().encode())
        shard = Shard(
            **_save(folder, _shard_name(part, number), content.images).model_dump(),
            num_images=len(content.images),
            unreadable=content.unreadable,
            changes=content.changes,
        )
        atomic_write(record, shard.model_dump_json().encode())
    return shard


def _shard_name(part: PartName, number: int) -> str:
    return f"{part}/images-{number:05d}.npy"


def _record(folder: Path, part: PartName, number: int, what: str = "") -> Path:
    return folder / UNFINISHED / f"{part}-{number:05d}{what}.json"


def _recorded(folder: Path, record: Path) -> Shard | None:
    """Return what a run before has written, or None where that is absent or incomplete."""
    try:
        shard = Shard.model_validate_json(record.read_bytes())
        return shard if (folder / shard.name).stat().st_size == shard.num_bytes else None
    except (FileNotFoundError, ValidationError):
        return None


def _source_files(record: Path) -> SourceFiles | None:
    """Return what is noted of the files that a shard was made of, or None where nothing is."""
    try:
        return SourceFiles.model_validate_json(record.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _check_unreadable(unreadable: list[str], work: _Work) -> None:
    allowed = work.request.max_unreadable * work.total
    if len(unreadable) <= allowed:
        return
    first = "; ".join(unreadable[:NAMED])
    raise DataError(
        f"{len(unreadable)} of {work.total} files cannot be read as images so far, more than "
        f"--max-unreadable {work.request.max_unreadable:g} allows: {first}"
        f"{'; ...' if len(unreadable) > NAMED else ''}. Repair or remove them and prepare into a new folder, "
        "or allow more and run again into this one"
    )


def _describe(
    work: _Work, part: PartName, files: Sequence[LabelledFile], shards: list[Shard]
) -> PreparedPart:
    """Write a part's labels and count its classes; raises DataError for a class without an image."""
    unreadable = {name for shard in shards for name in shard.unreadable}
    labels = np.array([f.label for f in files if printable(f.entry.name) not in unreadable], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(work.selected.classes)).tolist()
    per_class = dict(zip(work.selected.classes, counts, strict=True))
    if part == TRAIN and 0 in counts:
        empty = next(name for name, count in per_class.items() if not count)
        raise DataError(f"class {empty} has no readable image; repair or remove its folder")
    stored = _save(work.request.folder, f"{part}/labels.npy", labels)
    return PreparedPart(num_images=len(labels), per_class=per_class, labels=stored, shards=shards)


def _save(folder: Path, name: str, array: np.ndarray[Any, Any]) -> StoredFile:
    path = folder / name
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    return StoredFile(name=name, num_bytes=path.stat().st_size, sha256=file_sha256(path))


def _card(work: _Work, layout: Layout, identity: str, parts: dict[PartName, PreparedPart]) -> Card:
    request, selected, elsewhere = work.request, work.selected, work.elsewhere
    outside = [f"{elsewhere.name}/{name}" for name in elsewhere.outside] if elsewhere else []
    return Card(
        request=identity,
        source=request.source_name,
        licence=request.licence,
        image_size=request.image_size,
        crop=CROP,
        normalisation=NORMALISATION,
        classes=list(selected.classes),
        class_rule=selected.class_rule,
        class_seed=request.selection.seed if request.selection.count is not None else None,
        held_out_rule=selected.held_out_rule,
        held_out_source=elsewhere.name if elsewhere else None,
        held_out_labels=elsewhere.labels if elsewhere else None,
        parts=parts,
        num_unreadable=sum(len(shard.unreadable) for p in parts.values() for shard in p.shards),
        unused_parts=_unused(work, layout),
        num_outside=layout.num_outside + (elsewhere.num_outside if elsewhere else 0),
        outside=[*layout.outside, *outside],
        attnbench=version("attnbench"),
        pillow=PIL.__version__,
        numpy=np.__version__,
        source_files=_all_source_files(work),
    )


def _all_source_files(work: _Work) -> dict[str, SourceFiles]:
    folder = work.request.folder
    noted = {
        _shard_name(part, number): _source_files(_record(folder, part, number, "-source"))
        for part, number, _ in work.shards()
    }
    return {name: files for name, files in noted.items() if files is not None}


def _unused(work: _Work, layout: Layout) -> dict[str, int]:
    """Count the images of chosen classes that the source has and the set does not, by part of the source."""
    selected = work.selected
    files = (*selected.train, *(selected.held_out if work.elsewhere is None else ()))
    used = {file.entry.parts for file in files}
    unused = {
        part: sum(entry.parts not in used for name in selected.classes for entry in classes.get(name, []))
        for part, classes in layout.parts.items()
    }
    return {part: count for part, count in unused.items() if count}
