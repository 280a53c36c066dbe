"""Folders of PNG files: flat, or one sub-folder per class; never JPEG between sampler and score."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image
import torch

from attnbench.data import decoding
from attnbench.data.content import TURNED, changes_of
from attnbench.data.layout import is_passed_over, printable, refuse_parts_as_classes
from attnbench.errors import DataError, cannot_read
from attnbench.evaluation.collection import SHARD_SIZE, ImageCollection, ImageShard, listed
from attnbench.metrics.threads import each

PNG, JPEG = (".png",), (".jpg", ".jpeg", ".jpe", ".jfif")
OTHERS = (".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".heic", ".ppm", ".pgm", ".tga", ".exr")
KEPT_BYTES = 2**27  # of files that wait to be decoded
READ_AT_ONCE = 32  # files
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, zlib.error, PIL.Image.DecompressionBombError)
_TO_RGB = "PIL.Image.open(file).convert('RGB').save(file)"
_FLATTEN = (
    "flatten it onto the background you mean, e.g. "
    "PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image).convert('RGB')"
)
_REMEDY = {  # by colour type of the PNG header
    3: f"has a palette; save it as RGB: {_TO_RGB}",
    4: f"has grey with alpha; {_FLATTEN}",
    6: f"has RGB with alpha; {_FLATTEN}",
}

_HIDDEN = {  # by the name of a chunk of PNG
    b"tRNS": f"has a colour that stands for transparent pixels; {_FLATTEN}",
    b"acTL": "has several frames; save the one that you mean alone",
}


def open_image_folder(
    path: Path, *, allow_jpeg: bool = False, image_size: int | None = None
) -> ImageCollection:
    """Open a folder of PNG files in natural order; sub-folders are classes, numbered by name.

    The numbers are those that a training set in folders has: `10` before `2`, as torchvision's ImageFolder.
    With `image_size` files of any size and format are taken, real images as they come, and each is made RGB
    of that side as a training set is: halved and resized, its middle cut out (`data.decoding`).
    Headers are read here (size, colour type, depth, end), pixels later. Raises DataError.
    """
    warnings: list[str] = []
    classes = _by_class(path, PNG + JPEG * allow_jpeg + OTHERS * (image_size is not None), warnings)
    files = [file for images in classes.values() for file in images]
    if image_size is None:
        height, width, channels = _one_shape(path, files, warnings)
    else:
        _refuse_unreadable(files)
        height, width, channels = image_size, image_size, 3
        warnings.append(
            f"every image of {path} is cut and resized to {image_size} px as `data prepare` does it"
        )
    labelled = list(classes) != [None]
    labels = [label for label, images in enumerate(classes.values()) for _ in images]
    return ImageCollection(
        name=printable(str(path)),
        shards=tuple(_Files(files=files, shape=(height, width, channels), crop_to=image_size).shards()),
        height=height,
        width=width,
        channels=channels,
        labels=torch.tensor(labels) if labelled else None,
        class_names=tuple(printable(str(name)) for name in classes) if labelled else None,
        warnings=warnings,
    )


def _by_class(path: Path, formats: Sequence[str], warnings: list[str]) -> dict[str | None, list[Path]]:
    """Return the images of each class, or all of them under None; raises DataError."""
    files = _images_in(path, formats, warnings)
    folders = sorted(filter(_is_class, path.iterdir()), key=lambda folder: printable(folder.name))
    if files and folders:
        raise DataError(
            f"{path} holds images beside sub-folders ({listed(folder.name for folder in folders)}); "
            "put all images in one folder, or every image in the sub-folder of its class"
        )
    if files:
        return {None: files}
    if folders:
        refuse_parts_as_classes((folder.name for folder in folders), str(path))
        return {folder.name: _class_images(folder, formats, warnings) for folder in folders}
    raise DataError(f"{path} holds no PNG file and no sub-folders with PNG files{_beside(path)}")


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not is_passed_over(entry.name)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which 2.png stands before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _beside(path: Path) -> str:
    """Say what a folder without images holds instead."""
    names = sorted(printable(entry.name) for entry in path.iterdir() if not is_passed_over(entry.name))
    if not names:
        return ": it is empty; name the folder your sampler wrote to"
    return f" but {listed(names)}; name the folder with the images or the .npz file itself"


def _class_images(folder: Path, formats: Sequence[str], warnings: list[str]) -> list[Path]:
    """Return the images of one class; raises DataError where there are none, or more folders."""
    deeper = sorted(entry.name for entry in folder.iterdir() if _is_class(entry))
    if deeper:
        raise DataError(
            f"class folder {folder} holds folders ({listed(deeper)}); images lie directly in the folder of "
            "their class: PATH/<class>/<image>.png"
        )
    files = _images_in(folder, formats, warnings)
    if not files:
        raise DataError(f"class folder {folder} holds no image; fill or remove it")
    return files


def _images_in(folder: Path, formats: Sequence[str], warnings: list[str]) -> list[Path]:
    """Return the images directly in a folder, in natural order; raises DataError for other formats."""
    found: list[Path] = []
    ignored: list[str] = []
    for entry in folder.iterdir():
        suffix = entry.suffix.lower()
        if is_passed_over(entry.name) or entry.is_dir():
            continue
        if suffix in formats:
            found.append(entry)
        elif suffix in JPEG:
            raise DataError(
                f"{entry} is a JPEG, whose compression changes every score; have the sampler write PNG "
                "or npz (converting a JPEG afterwards does not undo it)"
            )
        elif suffix in OTHERS:
            raise DataError(
                f"{entry}: images are read from PNG files only; save it as one (PIL.Image's save)"
            )
        else:
            ignored.append(printable(entry.name))
    if found and ignored:
        warnings.append(f"ignored in {folder}, not images: {listed(sorted(ignored))}")
    return sorted(found, key=_natural)


def _one_shape(path: Path, files: Sequence[Path], warnings: list[str]) -> tuple[int, int, int]:
    """Read all headers; return the (height, width, channels) they share or raise DataError."""
    heads = each(_head, files)
    shapes = [shape for shape, _ in heads]
    if turned := [file for file, (_, turned) in zip(files, heads, strict=True) if turned]:
        warnings.append(f"{path}: {len(turned):,} images with {TURNED}, such as {turned[0].name}")
    usual = Counter(shapes).most_common(1)[0][0]
    for file, shape in zip(files, shapes, strict=True):
        if shape[:2] != usual[:2]:
            raise DataError(
                f"{file} is {shape[1]} x {shape[0]} pixels, most images in {path} are {usual[1]} x "
                f"{usual[0]}; all must be of one size: sample it again or remove it; real images of many "
                "sizes are cut by --image-size SIDE, or by `attnbench data prepare`"
            )
        if shape != usual:
            kinds = {1: "grey", 3: "RGB"}
            raise DataError(
                f"{file} is {kinds[shape[2]]}, most images in {path} are {kinds[usual[2]]}; all must be of "
                f"one kind, e.g. RGB: {_TO_RGB}"
            )
    return usual


def _head(file: Path) -> tuple[tuple[int, int, int], bool]:
    """Return (height, width, channels) of a file's header, and whether EXIF turns it; raises DataError."""
    try:
        if file.suffix.lower() in PNG:
            return _png_head(file)
        with PIL.Image.open(file) as image:
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                raise DataError(
                    f"{file} is {image.format} of mode {image.mode}; it must be a JPEG, grey or RGB"
                )
            return (image.height, image.width, len(image.getbands())), TURNED in changes_of(image)
    except _UNREADABLE as error:
        raise _cut(file, error) from error


def _png_head(file: Path) -> tuple[tuple[int, int, int], bool]:
    """Read the PNG header by hand: pillow does not say that RGB has 16 bits, it cuts them to 8.

    Source: PNG specification (third edition), 11.2.1 IHDR and 11.2.5 IEND.
    """
    with file.open("rb") as stream:
        head = stream.read(26)
        hidden = _before_the_pixels(stream)
        if len(head) < 26 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
            raise DataError(f"{file} is no PNG file in spite of its name; save it as PNG, or remove it")
        stream.seek(max(26, stream.seek(0, 2) - 64))
        ends = b"IEND" in stream.read()
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if colour in _REMEDY:
        raise DataError(f"{file} {_REMEDY[colour]}")
    if depth != 8:
        how = (
            "save round(127.5 x + 127.5) as uint8"
            if depth == 16
            else "PIL.Image.open(file).convert('L').save(file)"
        )
        raise DataError(f"{file} stores {depth} bits per channel; scores take 8: {how}")
    for chunk, fault in _HIDDEN.items():
        if chunk in hidden:
            raise DataError(f"{file} {fault}")
    if not ends:  # cut, or something long stands behind the end: decoding tells
        _decode(file, 3 if colour == 2 else 1)
    turned = False
    if b"eXIf" in hidden:
        with PIL.Image.open(file) as image:
            turned = TURNED in changes_of(image)
    return (height, width, 3 if colour == 2 else 1), turned


def _before_the_pixels(stream: IO[bytes]) -> set[bytes]:
    """Return the names of the chunks between the header and the pixels. Source: as above, 5.3 and 5.6."""
    names, place = set[bytes](), 33
    while True:
        stream.seek(place)
        length_and_name = stream.read(8)
        if len(length_and_name) < 8 or length_and_name[4:] in (b"IDAT", b"IEND"):
            return names
        names.add(length_and_name[4:])
        place += 12 + int.from_bytes(length_and_name[:4], "big")


def _decode(file: Path, channels: int, content: bytes | None = None) -> np.ndarray:
    """Return the pixels, uint8 [H, W, C], of a file or its bytes; raises DataError naming the file."""
    try:
        with PIL.Image.open(file if content is None else io.BytesIO(content)) as image:
            pixels = np.asarray(image)
    except _UNREADABLE as error:
        raise _cut(file, error) from error
    return pixels if channels == 3 else pixels[..., None]


def _cropped(file: Path, side: int, content: bytes | None = None) -> np.ndarray:
    try:
        return decoding.decode(file if content is None else io.BytesIO(content), side)
    except DataError as error:
        raise _cut(file, error) from error


def _refuse_unreadable(files: Sequence[Path]) -> None:
    """Raise DataError naming the first of the files whose header tells that it cannot be used."""

    def examine(file: Path) -> None:
        try:
            decoding.examine(file)
        except DataError as error:
            raise DataError(f"{file} cannot be used: {error}; replace or remove it") from error

    each(examine, files)


def _cut(file: Path, error: BaseException) -> DataError:
    return DataError(f"cannot decode {file}: {error}; it is probably cut: sample it again or remove it")


@dataclass(kw_only=True)
class _Files:
    """Image files of one size; those that were read for a shard's key are decoded from memory, once."""

    files: list[Path]
    shape: tuple[int, int, int]
    crop_to: int | None
    _kept: dict[int, bytes] = field(default_factory=dict)

    def shards(self) -> Iterator[ImageShard]:
        """Yield the images as shards of a thousand."""
        for first in range(0, len(self.files), SHARD_SIZE):
            count = min(SHARD_SIZE, len(self.files) - first)
            yield ImageShard(
                count=count,
                find_key=functools.partial(self._key, first, count),
                load=functools.partial(self._rows, first, 0, count),
                load_one=functools.partial(self._one, first),
                load_rows=functools.partial(self._rows, first),
            )

    def _key(self, first: int, count: int) -> str:
        self._kept.clear()  # of the last shard, where its features were known
        files = self.files[first : first + count]
        left = KEPT_BYTES

        def keep(number: int, content: bytes) -> None:
            nonlocal left
            left -= len(content)
            if left >= 0:
                self._kept[first + number] = content

        return files_key(files, keep) if self.crop_to is None else cropped_key(files, self.crop_to, keep)

    def _one(self, first: int, index: int) -> torch.Tensor:
        return torch.from_numpy(self._pixels(first + index).copy())

    def _rows(self, first: int, start: int, count: int) -> torch.Tensor:
        numbers = range(first + start, first + start + count)
        found = np.empty((count, *self.shape), np.uint8)

        def decode(number: int) -> None:
            pixels = self._pixels(number, self._kept.pop(number, None))
            if pixels.shape != self.shape:
                raise _cut(self.files[number], ValueError(f"it is {list(pixels.shape)} now"))
            found[number - numbers.start] = pixels

        each(decode, numbers)
        return torch.from_numpy(found)

    def _pixels(self, number: int, content: bytes | None = None) -> np.ndarray:
        if self.crop_to is not None:
            return _cropped(self.files[number], self.crop_to, content)
        return _decode(self.files[number], self.shape[2], content)


def cropped_key(files: Sequence[Path], side: int, keep: Callable[[int, bytes], None] | None = None) -> str:
    """Return the key of image files that are cut to squares when they are read; raises DataError."""
    return hashlib.sha256(f"{files_key(files, keep)} cropped to {side}".encode()).hexdigest()


def files_key(files: Sequence[Path], keep: Callable[[int, bytes], None] | None = None) -> str:
    """Return the SHA-256 of the files' bytes in order, whatever their names; raises DataError.

    `keep` is given each file's place and bytes, which need not be read again then.
    """
    digest = hashlib.sha256(b"image files")
    for first in range(0, len(files), READ_AT_ONCE):
        for number, content in enumerate(each(_content, files[first : first + READ_AT_ONCE]), first):
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)
            if keep is not None:
                keep(number, content)
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error
