"""How the files of a source form classes and parts: `<class>/<image>` or `<part>/<class>/<image>`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnbench.errors import DataError

TRAIN = "train"
HELD_OUT_NAMES = ("val", "validation", "test", "held-out")
SHOWN = 5  # files outside the layout that a card names; the rest are counted


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source: its path in parts, its bytes, and where it starts in an archive."""

    parts: tuple[str, ...]
    size: int
    offset: int = 0

    @property
    def name(self) -> str:
        """The path with slashes."""
        return "/".join(self.parts)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files by part and class, in order of name, and those that belong to no class."""

    parts: dict[str, dict[str, list[Entry]]]
    num_outside: int
    outside: tuple[str, ...]


def arrange(entries: Iterable[Entry], source: str) -> Layout:
    """Sort files into parts and classes; a single folder around everything is looked through.

    Files at other depths are counted as outside. Of a name that an archive holds twice the last file is
    meant, as when it is unpacked. Raises DataError when there is no class at all.
    """
    files = last_of_each_name(entries)
    skip = _depth_of_wrapping(files, stop=(TRAIN, *HELD_OUT_NAMES))
    named = any(len(f.parts) == skip + 3 and f.parts[skip] == TRAIN for f in files)
    parts: dict[str, dict[str, list[Entry]]] = {}
    outside = []
    for file in files:
        part = "".join(file.parts[skip : skip + 1]) if named else TRAIN
        inner = file.parts[skip + named :]
        if len(inner) == 2 and part in (TRAIN, *HELD_OUT_NAMES):
            parts.setdefault(part, {}).setdefault(inner[0], []).append(file)
        else:
            outside.append(file.name)
    if TRAIN not in parts:
        raise DataError(
            f"{source} has no images in class folders ({_first(outside)}); expected <class>/<image> or "
            "train/<class>/<image>: name the folder that holds them. ImageNet's validation tar has no "
            "classes in it: give it with --held-out-from and --labels, beside the training images"
        )
    return Layout(parts=parts, num_outside=len(outside), outside=tuple(outside[:SHOWN]))


def arrange_one_part(entries: Iterable[Entry], source: str) -> Layout:
    """Sort the files of a source that is one part as a whole into classes; that part is called train here.

    Folders around everything are looked through, val/ as well. Raises DataError when there is no class.
    """
    files = last_of_each_name(entries)
    skip = _depth_of_wrapping(files, stop=())
    classes: dict[str, list[Entry]] = {}
    for file in files:
        if len(file.parts) == skip + 2:
            classes.setdefault(file.parts[skip], []).append(file)
    outside = [file.name for file in files if len(file.parts) != skip + 2]
    if not classes:
        raise DataError(
            f"{source} has no images in class folders ({_first(outside)}); name the folder that holds the "
            "class folders, or give the classes of images in no folder with --labels"
        )
    return Layout(parts={TRAIN: classes}, num_outside=len(outside), outside=tuple(outside[:SHOWN]))


def last_of_each_name(entries: Iterable[Entry]) -> list[Entry]:
    """Return files in order of name; of a name that comes twice the last one."""
    return sorted({entry.parts: entry for entry in entries}.values(), key=lambda entry: entry.parts)


def _depth_of_wrapping(files: list[Entry], stop: tuple[str, ...]) -> int:
    """Return how many folders lie around everything; one whose name is in `stop` is not looked through."""
    skip = 0
    while files:
        around = {f.parts[skip] for f in files if len(f.parts) > skip + 1}
        deeper = sum(len(f.parts) > skip + 2 for f in files)
        if len(around) != 1 or around <= set(stop) or 2 * deeper <= len(files):
            break
        skip += 1
    return skip


def _first(outside: list[str]) -> str:
    if not outside:
        return "no files at all"
    return f"{len(outside)} files elsewhere, such as {outside[0]}"
