"""Image files to uint8 RGB squares: which are accepted, how they are cropped, why one cannot be used."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from attnbench.data.content import bit_depth_fault, changes_of, is_transparent
from attnbench.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged files we give the reason, of large ones none
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What pillow's decoders raise on damaged files."""
MAX_PIXELS = 2**27
"""Pixels of an image after resizing: a picture of 1 x 60,000 would grow to gigabytes before its crop."""


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [side, side, 3], and what of the file is not in them, in words; mostly nothing."""

    pixels: np.ndarray
    changes: tuple[str, ...]


def decode(file: Path | IO[bytes], side: int) -> np.ndarray:
    """Return an image as uint8 [side, side, 3], centre-cropped; raises DataError with the reason why not."""
    return decode_and_tell(file, side).pixels


def decode_and_tell(file: Path | IO[bytes], side: int) -> Decoded:
    """Return what `decode` does and what of the file is not in it; raises DataError likewise."""
    import numpy as np

    with _opened(file) as image:
        rgb, changes = _as_rgb(image)
        return Decoded(np.array(centre_crop(rgb, side)), changes)


def examine(path: Path) -> tuple[str, ...]:
    """Return what of a file will not be in its pixels, as far as its header tells; raises DataError.

    Only where an image may be transparent are its pixels decoded.
    """
    with _opened(path) as image:
        return _as_rgb(image)[1] if image.has_transparency_data else _checked(image)


def starts_as_image(content: IO[bytes]) -> bool:
    """Return whether pillow knows what this is the start of; for files whose names do not say it."""
    import PIL.Image
    import PIL.ImageFile

    try:
        with PIL.Image.open(content) as image:
            return not isinstance(image, PIL.ImageFile.StubImageFile)  # HDF5 and the like: no pixels
    except (*DAMAGED, PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError):
        return False


@contextmanager
def _opened(file: Path | IO[bytes]) -> Iterator[Image]:
    """Open an image; whatever its decoding raises becomes a DataError with the reason."""
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            yield image
    except PIL.UnidentifiedImageError:
        raise DataError("not an image that pillow knows") from None
    except (*DAMAGED, PIL.Image.DecompressionBombError) as error:
        raise DataError(str(error) or type(error).__name__) from error


def _checked(image: Image) -> tuple[str, ...]:
    if (fault := bit_depth_fault(image)) is not None:
        raise DataError(fault)
    return changes_of(image)


def _as_rgb(image: Image) -> tuple[Image, tuple[str, ...]]:
    changes = _checked(image)  # before pixels are loaded, which makes pillow forget some of it
    if image.has_transparency_data and is_transparent(image):
        raise DataError(
            "transparent pixels, which have no one colour; flatten it onto the background you mean"
        )
    return image.convert("RGB"), changes


def centre_crop(image: Image, side: int) -> Image:
    """Halve with a box filter while twice too large, resize bicubic, crop the middle square.

    Raises ValueError for an image so long and narrow that resizing it would fill the memory.
    Source: center_crop_arr of github.com/openai/guided-diffusion, guided_diffusion/image_datasets.py; the
    same function stands in DiT's train.py.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too long and narrow for a square crop")
    image = image.resize((width, height), Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
