"""Image files to uint8 RGB squares: which are accepted, how they are cropped, why one cannot be used."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from attnbench.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow modes of 8 bits: 16-bit and float images would be clipped, not scaled, on the way to RGB."""
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


def decode(file: Path | IO[bytes], side: int) -> np.ndarray:
    """Return an image as uint8 [side, side, 3], centre-cropped; raises DataError with the reason why not."""
    import numpy as np
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            if (fault := mode_fault(image)) is not None:
                raise DataError(fault)
            return np.array(centre_crop(image.convert("RGB"), side))
    except PIL.UnidentifiedImageError:
        raise DataError("not an image that pillow knows") from None
    except (*DAMAGED, PIL.Image.DecompressionBombError) as error:
        raise DataError(str(error) or type(error).__name__) from error


def header_fault(path: Path) -> str | None:
    """Return why a file cannot be used as far as its header tells, or None."""
    import PIL.Image

    if path.is_dir():
        return "a folder; images lie directly in their class's folder"
    try:
        with PIL.Image.open(path) as image:
            return mode_fault(image)
    except PIL.UnidentifiedImageError:
        return "not an image that pillow knows"
    except (*DAMAGED, PIL.Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__


def mode_fault(image: Image) -> str | None:
    """Return why an opened image's pixels cannot become 8-bit RGB, or None."""
    return None if image.mode in MODES else f"pixel mode {image.mode}; save it with 8 bits per channel"


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
