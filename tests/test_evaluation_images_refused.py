"""Sets of images that must not be scored: each is one clear error, found before any extraction."""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import all_images, npz, npz_shards, pictures, png_folder, refused, save

from attnbench.errors import DataError
from attnbench.evaluation.images import open_images


def test_places_without_images(tmp_path):
    """Missing, empty, or something else: each says what is accepted."""
    refused(tmp_path / "nowhere", "does not exist", "arr_0")
    refused(tmp_path, "empty")
    (tmp_path / "weights.pt").write_text("")
    refused(tmp_path, "weights.pt")
    refused(tmp_path / "weights.pt", ".pt", "arr_0")


def test_other_lossless_formats_are_refused(tmp_path):
    """One format, PNG: what writes others can write it."""
    refused(save(tmp_path / "0.bmp", pictures(1)[0]).parent, "0.bmp", "PNG")


def test_mixed_sizes_are_found_from_headers(tmp_path, monkeypatch):
    """The odd file is named before any pixel is decoded."""
    png_folder(tmp_path, pictures(5))
    save(tmp_path / "3.png", pictures(1, height=6)[0])
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("decoded"))
    refused(tmp_path, "3.png is 4 x 6", "are 4 x 5")


def test_grey_among_rgb_is_refused(tmp_path):
    """A mix of kinds is a mistake; the file and the conversion are named."""
    png_folder(tmp_path, pictures(5))
    save(tmp_path / "2.png", pictures(1, channels=1)[0])
    refused(tmp_path, "2.png is grey", "are RGB", "convert('RGB')")


def _rgb16() -> bytes:
    """A 16-bit RGB PNG of 4 x 5 pixels, which pillow cannot write."""
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(5))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_pixels_of_other_kinds_are_refused(tmp_path):
    """Alpha, palettes, 16 bits and 1 bit: pillow would convert some of them in silence."""
    rgb = PIL.Image.fromarray(pictures(1)[0])
    for mode, words in {
        "RGBA": "alpha_composite",
        "LA": "alpha_composite",
        "P": "palette",
        "1": "stores 1 bits",
    }.items():
        folder = tmp_path / mode
        folder.mkdir()
        rgb.convert(mode).save(folder / "odd.png")
        refused(folder, "odd.png", words)
    (tmp_path / "16").mkdir()
    (tmp_path / "16" / "deep.png").write_bytes(_rgb16())
    refused(tmp_path / "16", "deep.png", "16 bits")


def test_cut_png_files_are_found_at_opening(tmp_path):
    """A file that lost its end is named before extraction starts, one that is no PNG as well."""
    png_folder(tmp_path, pictures(3, height=64, width=64))
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1\.png.*probably cut"):
        open_images(tmp_path)
    (tmp_path / "1.png").write_bytes(b"\xff\xd8\xff" + whole)
    with pytest.raises(DataError, match=r"1\.png is no PNG file"):
        open_images(tmp_path)


def test_damage_inside_a_png_is_found_when_decoded(tmp_path):
    """Header and end are fine, the pixels are not: the error names the file."""
    png_folder(tmp_path, pictures(3, height=64, width=64))
    content = bytearray((tmp_path / "2.png").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "2.png").write_bytes(content)
    refused(tmp_path, "2.png")


def test_folders_that_mean_two_things(tmp_path):
    """Images beside class folders, folders in class folders, an empty class."""
    png_folder(tmp_path / "a" / "cat", pictures(2))
    save(tmp_path / "a" / "stray.png", pictures(1)[0])
    refused(tmp_path / "a", "beside sub-folders (cat)")
    png_folder(tmp_path / "b" / "cat" / "deeper", pictures(2))
    refused(tmp_path / "b", "holds folders (deeper)")
    png_folder(tmp_path / "c" / "cat", pictures(2))
    (tmp_path / "c" / "dog").mkdir()
    refused(tmp_path / "c", "dog", "no image")


def test_arrays_that_are_no_images(tmp_path):
    """Every wrong array says what was got and how to make the right one."""
    float_images = pictures(2).astype(np.float32) / 127.5 - 1
    refused(npz(tmp_path, arr_0=float_images), "float32", "127.5 * x + 127.5", "clip")
    refused(npz(tmp_path, arr_0=pictures(2).astype(np.int64)), "int64", "astype(numpy.uint8)")
    refused(npz(tmp_path, arr_0=pictures(2)[..., 0]), "[2, 5, 4]", "[..., None]")
    refused(npz(tmp_path, arr_0=pictures(2)[0, 0]), "[4, 3]")
    refused(npz(tmp_path, arr_0=pictures(2).transpose(0, 3, 1, 2).copy()), "transpose(0, 2, 3, 1)")
    refused(npz(tmp_path, arr_0=pictures(2, channels=4)), "alpha")
    refused(npz(tmp_path, arr_0=np.asfortranarray(pictures(2))), "Fortran")
    refused(npz(tmp_path, arr_0=pictures(0)), "without any image")


def test_npz_without_images_lists_its_arrays(tmp_path):
    """Statistics alone are recognised; anything else is listed."""
    refused(npz(tmp_path, samples=pictures(2), ids=np.arange(2)), "samples, ids", "arr_0=images")
    refused(npz(tmp_path, mu=np.zeros(3), sigma=np.eye(3)), "statistics (mu, sigma)")


def test_labels_must_fit(tmp_path):
    """Labels of another length or kind, negative ones, and what is no class number."""
    refused(npz(tmp_path, arr_0=pictures(3), arr_1=np.arange(2)), "2 labels for 3 images")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.eye(3) / 2), "float64 [3, 3]", "one-hot [N, K]")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.ones((3, 2))), "float64 [3, 2]")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 0.5, 1])), "whole numbers")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, np.nan, 1])), "whole numbers")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array(["a", "b", "c"])), "<U1 [3]")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.ones(3, bool)), "bool [3]")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, -1, 1])), "labels from -1 to 1")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 2**40, 1])), "from 0 to 999,999")


@pytest.mark.parametrize(
    "stored",
    [
        np.array([2, 0, 1], np.uint8),
        np.array([2, 0, 1], np.int32)[:, None],
        np.array([[2, 0, 1]], np.uint64),
        np.array([2.0, 0.0, 1.0], np.float32),
        np.eye(3)[[2, 0, 1]],
        np.eye(3, dtype=bool)[[2, 0, 1]],
    ],
)
def test_labels_of_any_clear_form(tmp_path, stored):
    """Whole numbers of any type and axes of length 1, and one-hot rows, are the classes they mean."""
    found = open_images(npz(tmp_path, arr_0=pictures(3), labels=stored))
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == [2, 0, 1]


def test_few_images_of_many_classes(tmp_path):
    """Three samples of ImageNet's thousand classes are scored: no metric needs the rest."""
    found = open_images(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 1, 999])))
    assert found.warnings == [f"{found.name}: no image of class 2, 3, 4, 5, 6 and 992 more of 1,000"]


def test_a_class_without_images_is_a_warning(tmp_path):
    """Random labels leave classes out."""
    few = open_images(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 2, 0])))
    assert few.warnings == [f"{few.name}: no image of class 1 of 3"]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_cut_or_damaged_npz(tmp_path, write):
    """A cut archive fails at opening, damaged compressed pixels when they are read."""
    path = tmp_path / "a.npz"
    write(path, pictures(50))
    whole = path.read_bytes()
    for kept in (10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"a\.npz cannot be read"):
            open_images(path)
    if write is np.savez_compressed:
        path.write_bytes(whole[:1500] + bytes(500) + whole[2000:])
        refused(path, "a.npz cannot be read")


def test_shards_that_do_not_fit_together(tmp_path):
    """A missing shard, one of another size, labels in only some."""
    folder = npz_shards(tmp_path / "a", pictures(12), 3)
    (folder / "samples-00002.npz").unlink()
    refused(folder, "samples-00002.npz is missing")
    np.savez(folder / "samples-00002.npz", arr_0=pictures(3, height=9), labels=np.arange(3))
    refused(folder, "samples-00002.npz", "[9, 4, 3]")
    np.savez(folder / "samples-00002.npz", arr_0=pictures(3))
    refused(folder, "samples-00002.npz", "only one of them has labels")


def test_sets_that_a_dead_sampler_leaves(tmp_path):
    """All images equal, or each one single colour: refused at opening; a single live pair is enough."""
    same = np.repeat(pictures(1), 6, axis=0)
    refused(npz(tmp_path, arr_0=same), "same picture in every image", "sample again")
    plain = np.broadcast_to(pictures(6, height=1, width=1), (6, 5, 4, 3)).copy()
    refused(npz(tmp_path, arr_0=plain), "one single colour in every image")
    plain[5] = pictures(1)[0]
    assert len(open_images(npz(tmp_path, arr_0=plain))) == 6
    assert len(open_images(npz(tmp_path, arr_0=same[:1]))) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["png", "stored.npz", "compressed.npz"]))
def test_damage_is_a_data_error_or_harmless(data, kind):
    """Whatever bytes are changed or cut: pixels of the stated shape come out, or one DataError."""
    with tempfile.TemporaryDirectory() as name:
        folder, images = Path(name), pictures(3, height=9, width=8)
        if kind == "png":
            file, opened = png_folder(folder, images) / "1.png", folder
        else:
            file = opened = folder / f"{kind}"
            (np.savez if kind == "stored.npz" else np.savez_compressed)(file, images, np.array([0, 1, 0]))
        content = bytearray(file.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        message = ""
        try:
            assert all_images(opened).shape[1:] == (9, 8, 3)
        except DataError as error:
            message = str(error)
        assert not message or file.name in message
