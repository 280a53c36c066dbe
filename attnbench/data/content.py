"""What image files hold beside 8-bit RGB or grey, and what becomes of it: one policy wherever files are read.

Pixels are what pillow's `convert("RGB")` makes of the first frame, as ADM, DiT and torchvision read them:

- more than 8 bits per channel, and float: refused, since pillow cuts some of them without scaling;
- a pixel that is not opaque: refused, since nobody chose the colour behind it; an opaque channel is dropped;
- an EXIF orientation is not applied (pillow itself applies a TIFF's);
- of several frames the first is taken;
- palettes, CMYK and other colour spaces are converted, without a colour profile.

What is dropped or converted is counted for training sets. Images to be scored must need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN = ("L", "RGB")
MODES = (*PLAIN, "1", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow modes of 8 bits: 16-bit and float images would be clipped, not scaled, on the way to RGB."""
ORIENTATION = 0x0112  # of EXIF, and the tag of the same number in TIFF
BITS_PER_SAMPLE = 258  # tag of TIFF
PALETTE = "colours of a palette"
OPAQUE = "an opaque alpha channel, dropped"
FRAMES = "several frames, of which the first is taken"
TURNED = "an EXIF orientation, not applied"


def bit_depth_fault(image: Image) -> str | None:
    """Return why an opened image's pixels cannot become 8-bit RGB, or None."""
    if image.mode not in MODES:
        return f"pixel mode {image.mode}; save it with 8 bits per channel"
    bits = _bits_per_channel(image)
    return None if bits <= 8 else f"{bits} bits per channel; save it with 8"


def changes_of(image: Image) -> tuple[str, ...]:
    """Return what of an opened image is dropped or converted on the way to RGB; nothing of most."""
    found = []
    if image.mode in ("P", "PA"):
        found.append(PALETTE)
    elif image.mode not in (*PLAIN, "LA", "RGBA"):
        found.append("one bit per pixel" if image.mode == "1" else f"colours in {image.mode}")
    if image.has_transparency_data:
        found.append(OPAQUE)
    if getattr(image, "is_animated", False):
        found.append(FRAMES)
    if _orientation(image) not in (None, 1):
        found.append(TURNED)
    return tuple(found)


def is_transparent(image: Image) -> bool:
    """Return whether a pixel of an image is not opaque."""
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest != 255


def _orientation(image: Image) -> Any:
    """Return the orientation of EXIF where it stands before the pixels; a TIFF's pillow applies."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return None  # asking would decode the whole image
    return image.getexif().get(ORIENTATION)


def _bits_per_channel(image: Image) -> int:
    """Return the bits per channel of a file, which pillow's mode may hide; 8 stands for fewer as well."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, 8)  # type: ignore[attr-defined]
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    if image.format in ("JPEG2000", "AVIF"):
        return _stated_bits(image)
    for tile in getattr(image, "tile", ()):
        decoder, args = tile[0], tile[3]
        if decoder.startswith("ppm"):
            return max(8, int(args[1]).bit_length())  # (mode, largest value)
        if ";16" in str(args):
            return 16
    return 8


def _stated_bits(image: Image) -> int:
    """Read the depth out of the header of a JPEG 2000 (its SIZ marker) or an AVIF (its box `pixi`).

    Source: ITU-T T.800, A.5.1; ISO/IEC 23008-12, 6.5.6.
    """
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    head: bytes = file.read(2**16)
    file.seek(place)
    if image.format == "AVIF":
        at = head.find(b"pixi")
        channels = head[at + 8 : at + 9] if at >= 0 else b""
        return max(head[at + 9 : at + 9 + channels[0]], default=8) if channels else 8
    at = head.find(b"\xff\x4f\xff\x51")
    sizes = head[at + 42 : at + 43] if at >= 0 else b""
    return (sizes[0] & 0x7F) + 1 if sizes else 8
