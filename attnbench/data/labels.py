"""Files that say the class of each image of a flat source: ImageNet's devkit, Kaggle's CSV, plain lines."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from attnbench.data.card import LabelFile
from attnbench.data.image_sources import Source, is_archive, name_of, open_source
from attnbench.data.layout import Entry, last_of_each_name
from attnbench.errors import DataError, cannot_read
from attnbench.storage.hashing import file_sha256

META = ("data", "meta.mat")
TRUTH = ("data", "ILSVRC2012_validation_ground_truth.txt")
IMAGENET_NAME = "ILSVRC2012_val_{:08d}"
KAGGLE_HEADER = ["ImageId", "PredictionString"]
BOX = 5  # words of Kaggle's PredictionString for each box: a class and four corners
CORNERS = 4  # of the one box that each line of Tiny-ImageNet's val_annotations.txt ends with


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Class folder names by image file name, with or without its ending, and the file they come from."""

    file: LabelFile
    classes: dict[str, str]

    def key_of(self, name: str) -> str | None:
        """Return the name by which a file's label is known: the whole one, or the one without ending."""
        return next((key for key in (name, PurePosixPath(name).stem) if key in self.classes), None)


def read_labels(path: Path, scratch: Path) -> Labels:
    """Read the devkit of ILSVRC2012 (a tar archive) or lines of `file name,class folder`; raises DataError.

    Lines: comma, tab or space between the two, quotes as in CSV; the four corners of a box may follow, as in
    Tiny-ImageNet's val_annotations.txt. Under the header `ImageId,PredictionString` (Kaggle's
    LOC_val_solution.csv) the class is the first word of the second column, boxes follow it.
    """
    try:
        pairs = _devkit(path, scratch) if is_archive(path) else _lines(path)
        file = LabelFile(name=name_of(path), sha256=file_sha256(path))
    except OSError as error:
        raise DataError(f"--labels: {cannot_read(path, error)}") from error
    name, times = next(iter(Counter(name for name, _ in pairs).most_common(1)), ("", 0))
    if times != 1:
        what = f"names {name} {times} times" if times else "has no labels"
        raise DataError(f"--labels {path} {what}; write one line for each image")
    return Labels(file=file, classes=dict(pairs))


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"--labels {path} is neither text in UTF-8 nor a tar archive; give ILSVRC2012_devkit_t12.tar.gz, "
            "LOC_val_solution.csv, or lines of `file name,class folder`"
        ) from error
    rows = [(number, _columns(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    kaggle = bool(rows) and rows[0][1] == KAGGLE_HEADER
    pairs = []
    for number, row in rows[kaggle:]:
        boxed = len(row) == 2 + CORNERS and all(corner.isdecimal() for corner in row[2:])
        name, label = row[:2] if len(row) == 2 or boxed else ("", "")
        if kaggle:
            classes = set(label.split()[::BOX])
            label = classes.pop() if len(classes) == 1 else ""
        if not name or not label:
            wanted = "ImageId,class and boxes of that one class" if kaggle else "`file name,class folder`"
            raise DataError(f"--labels {path}, line {number}: expected {wanted}, got {', '.join(row)!r}")
        pairs.append((name, label))
    return pairs


def _columns(line: str) -> list[str]:
    """Split a line; one that breaks CSV's rules of quoting stays whole, and is refused for its one column."""
    line = line.strip()
    delimiter = next((sign for sign in (",", "\t") if sign in line), " ")
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return [line]
    return [column.strip() for column in row]


def _devkit(path: Path, scratch: Path) -> list[tuple[str, str]]:
    """Return file name without ending and WordNet ID of the validation images, in order.

    Line i of the ground truth is the ILSVRC2012_ID of the i-th image by name; the names count from 1.
    Source: readme.txt of ILSVRC2012_devkit_t12; github.com/pytorch/vision, torchvision/datasets/imagenet.py.
    """
    with open_source(path, scratch) as source:
        files = last_of_each_name(source.entries())
        meta, truth = (_content(source, files, tail, path) for tail in (META, TRUTH))
    folders = _wordnet_ids(meta, path)
    pairs = []
    for number, line in enumerate(truth.decode(errors="replace").rstrip().split("\n"), 1):
        folder = folders.get(line.strip())
        if folder is None:
            raise DataError(
                f"--labels {path}, {TRUTH[-1]}, line {number}: expected an ILSVRC2012_ID of "
                f"{META[-1]}'s {len(folders)} classes, got {line!r}; get the devkit again"
            )
        pairs.append((IMAGENET_NAME.format(number), folder))
    return pairs


def _content(source: Source, files: Sequence[Entry], tail: tuple[str, ...], path: Path) -> bytes:
    file = next((file for file in files if file.parts[-len(tail) :] == tail), None)
    if file is None:
        raise DataError(
            f"--labels {path} is an archive without {'/'.join(tail)}; give ILSVRC2012_devkit_t12.tar.gz, or "
            "text with lines of `file name,class folder`"
        )
    return source.read(file)


def _wordnet_ids(meta: bytes, path: Path) -> dict[str, str]:
    """Return the WordNet ID of each ILSVRC2012_ID, in digits, that is a class: a synset without children."""
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, zlib.error, struct.error, ArithmeticError, AttributeError, LookupError)
    try:
        content = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])
        synsets: Iterable[np.void] = np.atleast_1d(content["synsets"])
        return {str(int(s["ILSVRC2012_ID"])): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
    except (*damaged, OSError, TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"--labels {path}: {META[-1]} cannot be read ({error}); get the devkit again"
        ) from error
