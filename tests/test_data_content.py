"""What becomes of transparency, deep pixels, EXIF, frames, palettes: one policy wherever files are read."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import SIDE, class_files, make, picture, write_files
from image_sets import refused

from attnbench.data import load_dataset
from attnbench.data.card import read_card
from attnbench.evaluation.images import open_images
from attnbench.specs import ImageFolderData


def saved(image, kind, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = PIL.Image.open(io.BytesIO(picture(3)))


def hidden_red():
    """White, but for a square that is red and cannot be seen."""
    image = PIL.Image.new("RGBA", (20, 20), "white")
    image.paste((255, 0, 0, 0), (4, 4, 16, 16))
    return image


def rgb16_png():
    """Return a 16-bit RGB PNG, which pillow cannot write."""
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(5))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def rgb16_tiff():
    """Return a 16-bit RGB TIFF: one strip of 4 x 4 pixels."""
    tags = ((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
            (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 96))  # fmt: skip
    start = b"II*\0" + struct.pack("<I", 110) + struct.pack("<HHH", 16, 16, 16)
    return (
        start
        + bytes(96)
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4)
    )


TRANSPARENT, DEEP = "transparent pixels", "bits per channel"
REFUSED = {
    "rgba.png": (saved(hidden_red(), "png"), TRANSPARENT),
    "la.png": (saved(hidden_red().convert("LA"), "png"), TRANSPARENT),
    "rgba.webp": (saved(hidden_red(), "webp", lossless=True), TRANSPARENT),
    "palette.png": (
        saved(NOISE.convert("P"), "png", transparency=NOISE.convert("P").getpixel((5, 5))),
        TRANSPARENT,
    ),
    "palette.gif": (saved(hidden_red(), "gif"), TRANSPARENT),
    "key.png": (saved(NOISE, "png", transparency=NOISE.getpixel((5, 5))), TRANSPARENT),
    "grey-key.png": (
        saved(NOISE.convert("L"), "png", transparency=NOISE.convert("L").getpixel((5, 5))),
        TRANSPARENT,
    ),
    "rgb16.png": (rgb16_png(), f"16 {DEEP}"),
    "rgb16.tiff": (rgb16_tiff(), f"16 {DEEP}"),
    "rgb16.ppm": (b"P6 4 4 65535\n" + bytes(96), f"16 {DEEP}"),
    "grey16.png": (saved(PIL.Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "png"), "pixel mode I;16"),
    "float.tiff": (saved(PIL.Image.fromarray(np.zeros((9, 9), np.float32)), "tiff"), "pixel mode F"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_that_have_no_one_colour_of_8_bits_are_refused_everywhere(name, tmp_path):
    """`prepare` and image-folder name the file with the reason; `evaluate` refuses what of it is PNG."""
    content, reason = REFUSED[name]
    source = write_files(tmp_path / "photos", class_files() | {f"cat/{name}": content})
    card = make(source, tmp_path / "set", max_unreadable=0.1)
    (line,) = card.unreadable()
    assert line.startswith(f"cat/{name}: ")
    assert reason in line
    dataset = load_dataset(ImageFolderData(path=source, image_size=SIDE))
    assert dataset.unreadable == (line,)
    if name.endswith(".png"):
        refused(write_files(tmp_path / "scored", {name: content}), name)


def exif(turn=6):
    known = PIL.Image.Exif()
    known[0x0112] = turn
    return known


CONVERTED = {
    "opaque.png": (saved(NOISE.convert("RGBA"), "png"), "an opaque alpha channel, dropped"),
    "palette.png": (saved(NOISE.convert("P"), "png"), "colours of a palette"),
    "cmyk.jpg": (saved(NOISE.convert("CMYK"), "jpeg"), "colours in CMYK"),
    "bits.png": (saved(NOISE.convert("1"), "png"), "one bit per pixel"),
    "turned.jpg": (saved(NOISE, "jpeg", exif=exif()), "an EXIF orientation, not applied"),
    "turned.png": (saved(NOISE, "png", exif=exif()), "an EXIF orientation, not applied"),
    "frames.png": (
        saved(NOISE, "png", save_all=True, append_images=[NOISE.rotate(90)]),
        "several frames, of which the first is taken",
    ),
    "frames.tiff": (
        saved(NOISE, "tiff", save_all=True, append_images=[NOISE.rotate(90)]),
        "several frames, of which the first is taken",
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_converted_is_counted(name, tmp_path):
    """Pixels are pillow's RGB of the first frame, not turned; the card and the dataset's remarks count it."""
    content, what = CONVERTED[name]
    source = write_files(tmp_path / "photos", class_files() | {f"dog/{name}": content})
    card = make(source, tmp_path / "set")
    assert card.changes() == {what: 1}
    assert read_card(tmp_path / "set") == card
    dataset = load_dataset(ImageFolderData(path=source, image_size=SIDE, held_out_fraction=0.0))
    assert dataset.remarks == (f"1 images of {source} with {what}",)
    expected = PIL.Image.open(io.BytesIO(content)).convert("RGB")
    write_files(tmp_path / "plain", {"a/0.png": saved(expected, "png")})
    plain = load_dataset(ImageFolderData(path=tmp_path / "plain", image_size=SIDE, held_out_fraction=0.0))
    index = dataset.train.names.index(f"dog/{name}")
    assert torch.equal(dataset.train.get(torch.tensor([index])), plain.train.get(torch.tensor([0])))


def test_a_card_of_plain_images_says_nothing_of_conversions(tmp_path):
    """RGB and grey are what nobody needs to be told of."""
    files = class_files() | {"cat/grey.png": picture(4, mode="L")}
    make(write_files(tmp_path / "photos", files), tmp_path / "set")
    assert "changes" not in (tmp_path / "set/card.json").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(NOISE, "png", transparency=NOISE.getpixel((5, 5))), ("transparent", "alpha_composite")),
        (saved(NOISE, "png", save_all=True, append_images=[NOISE.rotate(90)]), ("several frames",)),
    ],
    ids=["key", "frames"],
)
def test_scored_images_hold_nothing_beside_their_pixels(content, words, tmp_path):
    """A colour that stands for transparency, and an animation, hide in a PNG of plain RGB."""
    refused(write_files(tmp_path, {"odd.png": content}), "odd.png", *words)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_an_orientation_of_scored_images_is_not_applied_and_said(name, tmp_path):
    """Real images are scored as ADM and clean-fid read them: as they lie in the file."""
    write_files(tmp_path, {name: CONVERTED[name][0]})
    images = open_images(tmp_path, allow_jpeg=True)
    assert (images.width, images.height) == NOISE.size
    assert images.warnings == [f"{tmp_path}: 1 images with an EXIF orientation, not applied, such as {name}"]


def test_pillows_warnings_do_not_reach_the_screen(tmp_path):
    """A palette with transparency in bytes makes pillow warn of its own conversion."""
    image = NOISE.convert("P")
    (tmp_path / "odd.png").write_bytes(saved(image, "png", transparency=bytes([255] * 255 + [254])))
    code = (
        "import sys; from pathlib import Path; from attnbench.data.decoding import examine\n"
        "try: examine(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "odd.png"], capture_output=True, text=True)
    assert done.stderr == ""
