"""Held-out images out of a second source: their classes by its folders, or by a file of labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attnbench.data.card import LabelFile
from attnbench.data.image_sources import Source, is_image, name_of, open_source
from attnbench.data.labels import Labels, read_labels
from attnbench.data.layout import (
    SHOWN,
    TRAIN,
    Entry,
    arrange_one_part,
    images_and_others,
    last_of_each_name,
    others_in_words,
    printable,
)
from attnbench.errors import DataError, UserInputError


@dataclass(frozen=True, kw_only=True)
class HeldOutSource:
    """An open source all of whose images are held out, and their classes."""

    name: str
    source: Source
    classes: dict[str, list[Entry]]
    labels: LabelFile | None = None
    num_outside: int = 0
    outside: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """What is not taken, in words and numbers."""

    @property
    def rule(self) -> str:
        """What is held out, in words."""
        return f"images of {self.name}" + (f", classes by {self.labels.name}" if self.labels else "")


@contextmanager
def open_held_out(path: Path | None, labels: Path | None, scratch: Path) -> Iterator[HeldOutSource | None]:
    """Open the folder or archive that `--held-out-from` names, or give None where it names none.

    Raises DataError for images without a class: outside class folders, or not in the file of labels.
    """
    if path is None:
        yield None
        return
    known = None if labels is None else read_labels(labels, scratch)
    with open_source(path, scratch) as source:
        yield _by_folder(source, path) if known is None else _by_label(source, path, known)


def check_apart(
    source: Source, train: Iterable[Entry], elsewhere: HeldOutSource, held_out: Iterable[Entry]
) -> None:
    """Raise UserInputError where one file of the disk is trained on and held out."""
    kept_out = set(elsewhere.source.locations(held_out))
    both = next((place for place in source.locations(train) if place in kept_out), None)
    if both is not None:
        raise UserInputError(
            f"{both} is a training image, and --held-out-from holds it out; name images of another folder, "
            "or hold out some of the training images with --held-out"
        )


def _by_folder(source: Source, path: Path) -> HeldOutSource:
    layout = arrange_one_part(
        source.entries(), f"--held-out-from {path}", lambda entry: is_image(source, entry)
    )
    return HeldOutSource(
        name=printable(name_of(path)),
        source=source,
        classes=layout.parts[TRAIN],
        num_outside=layout.num_outside,
        outside=layout.outside,
        left_out=layout.left_out,
    )


def _by_label(source: Source, path: Path, labels: Labels) -> HeldOutSource:
    """Give every image the class of its label, whatever folder it lies in; none may be left over."""
    every = last_of_each_name(source.entries())
    files, others = images_and_others(
        every, lambda entry: labels.key_of(entry.parts[-1]) is not None or is_image(source, entry)
    )
    by_key: dict[str, list[Entry]] = {}
    unlabelled = []
    for file in files:
        key = labels.key_of(file.parts[-1])
        if key is None:
            unlabelled.append(printable(file.name))
        else:
            by_key.setdefault(key, []).append(file)
    where = f"--labels {labels.file.name}"
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(files)} files of {path} have no label, such as {unlabelled[0]}; "
            f"{where} has {len(labels.classes)}, such as {next(iter(labels.classes))}. "
            "Give each file a label, or move it elsewhere"
        )
    if absent := [key for key in labels.classes if key not in by_key]:
        raise DataError(
            f"{len(absent)} of {len(labels.classes)} labels of {where} belong to no file of {path}, such as "
            f"{absent[0]}; complete the images, or remove those lines"
        )
    classes: dict[str, list[Entry]] = {}
    for key, found in by_key.items():
        if len(found) > 1:
            names = " and ".join(printable(file.name) for file in found[:2])
            raise DataError(f"{where}: the label of {key} fits {names} of {path}; rename one of them")
        classes.setdefault(labels.classes[key], []).extend(found)
    return HeldOutSource(
        name=printable(name_of(path)),
        source=source,
        classes=classes,
        labels=labels.file,
        num_outside=len(others),
        outside=tuple(printable(file.name) for file in others[:SHOWN]),
        left_out=tuple(others_in_words(others)),
    )
