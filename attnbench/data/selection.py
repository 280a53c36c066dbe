"""Which classes and images of a source a training set takes, by rules that depend on names alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.data.hashing import hash_order
from attnbench.data.held_out import HeldOutSource
from attnbench.data.layout import TRAIN, Entry, Layout
from attnbench.errors import DataError, UserInputError, cannot_read, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is asked of a source: all classes, some drawn by a seed, or a list; and what is held out."""

    count: int | None = None
    seed: int = 0
    listed: tuple[str, ...] | None = None
    held_out: str | None = None
    """Images of each class (`20`), a part of each (`0.05`), a part of the source (`test`), or None: the
    only such part the source has, else nothing."""


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file and the number of its class."""

    entry: Entry
    label: int


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Classes in order of name, the files of both parts by (class, file name), and how they were chosen."""

    classes: tuple[str, ...]
    train: tuple[LabelledFile, ...]
    held_out: tuple[LabelledFile, ...]
    class_rule: str
    held_out_rule: str


def select(layout: Layout, wanted: Selection, elsewhere: HeldOutSource | None = None) -> Selected:
    """Choose classes and the held-out part, of the source or from `elsewhere`.

    Raises DataError for what the source does not have and for held-out classes that are not trained on.
    """
    available = sorted(layout.parts[TRAIN])
    classes, class_rule = _classes(available, wanted)
    train = {name: layout.parts[TRAIN][name] for name in classes}
    if elsewhere is None:
        held_out, rule = _held_out(layout, train, wanted.held_out)
        train = _without(train, held_out, wanted.held_out)
    else:
        held_out, rule = elsewhere.classes, elsewhere.rule
    _check_known(held_out, available, rule)
    files = _in_order(classes, held_out)
    if elsewhere is not None and not files:
        raise DataError(f"--held-out-from {elsewhere.name} has no image of the chosen classes; choose others")
    return Selected(
        classes=tuple(classes),
        train=_in_order(classes, train),
        held_out=files,
        class_rule=class_rule,
        held_out_rule=rule,
    )


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read class names, one a line; blank lines and what follows a # are left out; raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"--class-list: {cannot_read(path, error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--class-list {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    names = [name for line in lines if (name := line.split("#")[0].strip())]
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        what = f"names {', '.join(twice[:3])} twice" if twice else "names no class"
        raise DataError(f"--class-list {path} {what}; write each class's folder name on a line of its own")
    return tuple(names)


def _classes(available: Sequence[str], wanted: Selection) -> tuple[list[str], str]:
    """Return the chosen classes in order of name, and the rule in words."""
    if wanted.listed is not None:
        for name in wanted.listed:
            if name not in available:
                raise DataError(
                    f"--class-list names {name!r}, which is no class of the source"
                    f"{did_you_mean(name, available)}; it has {len(available)} classes"
                )
        return sorted(wanted.listed), "listed by the user"
    if wanted.count is None:
        return list(available), "all"
    if wanted.count > len(available):
        raise DataError(
            f"--classes {wanted.count} is more than the source has; choose at most {len(available)}"
        )
    drawn = hash_order(f"{wanted.seed}/{name}" for name in available)[: wanted.count]
    rule = (
        f"{wanted.count} of {len(available)} drawn by seed {wanted.seed}: those with the smallest SHA-256 of "
        f"'{wanted.seed}/<class>'. Not the list of arXiv:2601.13683, which is not published"
    )
    return [available[index] for index in sorted(drawn)], rule


def _held_out(
    layout: Layout, train: dict[str, list[Entry]], wanted: str | None
) -> tuple[dict[str, list[Entry]], str]:
    """Return the held-out files by class, a part of the source or some of `train`, and the rule in words."""
    others = sorted(part for part in layout.parts if part != TRAIN)
    if wanted is None and len(others) > 1:
        raise UserInputError(f"the source has {' and '.join(others)}; choose with --held-out {others[0]}")
    if wanted is None and not others:
        return {}, "nothing"
    part = others[0] if wanted is None else wanted
    if part in others:
        return layout.parts[part], f"the source's part {part}"
    amount = _amount(part, others)
    held_out = {name: _smallest_hashes(name, files, amount) for name, files in train.items()}
    what = f"{part} of each class" if amount < 1 else f"{int(amount)} images of each class"
    return held_out, f"{what}: those with the smallest SHA-256 of '<class>/<file>'"


def _without(
    train: dict[str, list[Entry]], held_out: dict[str, list[Entry]], wanted: str | None
) -> dict[str, list[Entry]]:
    kept_out = {entry for files in held_out.values() for entry in files}
    left = {name: [entry for entry in files if entry not in kept_out] for name, files in train.items()}
    if empty := [name for name, files in left.items() if not files]:
        raise UserInputError(
            f"--held-out {wanted} leaves no training image in class {empty[0]}; hold out fewer"
        )
    return left


def _check_known(held_out: Collection[str], available: Sequence[str], rule: str) -> None:
    strange = sorted(set(held_out) - set(available))
    if strange:
        raise DataError(
            f"no training images for {len(strange)} of {len(held_out)} classes to be held out ({rule}), "
            f"such as {strange[0]!r}{did_you_mean(strange[0], available)}; name them as in training"
        )


def _amount(text: str, others: Sequence[str]) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf or (amount >= 1 and amount != int(amount)):
        parts = f", or a part of the source ({', '.join(others)})" if others else ""
        raise UserInputError(
            f"--held-out takes images of each class (20), a fraction of each (0.05){parts}; got {text!r}"
        )
    return amount


def _smallest_hashes(name: str, files: Sequence[Entry], amount: float) -> list[Entry]:
    count = round(amount * len(files)) if amount < 1 else int(amount)
    return [files[index] for index in hash_order(f"{name}/{file.parts[-1]}" for file in files)[:count]]


def _in_order(classes: Sequence[str], files: dict[str, list[Entry]]) -> tuple[LabelledFile, ...]:
    def names(label: int) -> Iterable[Entry]:
        return sorted(files.get(classes[label], []), key=lambda entry: entry.parts)

    return tuple(LabelledFile(entry, label) for label in range(len(classes)) for entry in names(label))
