"""Sets of images as users bring them: PNG folders, npz files, runs; and everything that must be refused."""

from __future__ import annotations

import shutil
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
from stage_cases import make_case

from attnbench.data import load_dataset
from attnbench.errors import DataError, UnknownNameError, UserInputError
from attnbench.evaluation.images import open_images
from attnbench.results import Result, append_result, environment
from attnbench.specs import ImageFolderData


def pictures(count: int, *, height: int = 5, width: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images uint8 [count, height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write one image file, grey where it has one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def png_folder(folder: Path, images: np.ndarray) -> Path:
    """Write images as 0.png, 1.png, ..., without leading zeros."""
    for index, pixels in enumerate(images):
        save(folder / f"{index}.png", pixels)
    return folder


def all_images(path: Path, **options) -> torch.Tensor:
    """Everything a collection yields, in order."""
    return torch.cat([images for images, _ in open_images(path, **options).batches(3)])


def refused(path: Path, *words: str, **options) -> str:
    """The message of the DataError that opening and decoding `path` raises; it holds all `words`."""
    with pytest.raises(DataError) as caught:
        all_images(path, **options)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    return message


# ---- what is accepted


def test_png_files_come_in_natural_order(tmp_path):
    """2.png stands before 10.png, and pixels are those of the files."""
    images = pictures(12)
    collection = open_images(png_folder(tmp_path / "samples", images))
    assert (len(collection), collection.height, collection.width, collection.channels) == (12, 5, 4, 3)
    assert torch.equal(all_images(tmp_path / "samples"), torch.from_numpy(images))
    assert torch.equal(collection.image(10), torch.from_numpy(images[10]))
    assert collection.labels is None
    assert collection.num_classes == 0
    assert collection.warnings == []


def test_class_folders_become_labels(tmp_path):
    """Classes have the numbers that a training set in these folders has; batches bring the labels along."""
    images = pictures(5)
    for index, name in enumerate(["class 10", "class 2", "class 2", "class 10", "class 10"]):
        save(tmp_path / name / f"{index}.PNG", images[index])
    collection = open_images(tmp_path)
    assert collection.class_names == ("class 10", "class 2")
    trained_on = load_dataset(ImageFolderData(path=tmp_path, image_size=4, held_out_fraction=0))
    assert collection.class_names == trained_on.class_names
    assert collection.num_classes == 2
    assert collection.labels.tolist() == [0, 0, 0, 1, 1]
    assert [labels.tolist() for _, labels in collection.batches(2)] == [[0, 0], [0, 1], [1]]
    assert torch.equal(all_images(tmp_path), torch.from_numpy(images[[0, 3, 4, 1, 2]]))


def test_a_wholly_grey_folder_has_one_channel(tmp_path):
    """Digits are grey; extractors repeat the channel."""
    images = pictures(3, channels=1)
    assert torch.equal(all_images(png_folder(tmp_path, images)), torch.from_numpy(images))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_in_adms_layout(tmp_path, write):
    """arr_0 with labels in arr_1, read in shards of a thousand, whether compressed or not."""
    images, labels = pictures(2300, height=3, width=2), np.arange(2300) % 7
    write(tmp_path / "samples.npz", images, labels)
    collection = open_images(tmp_path / "samples.npz")
    assert [shard.count for shard in collection.shards] == [1000, 1000, 300]
    assert collection.labels.tolist() == labels.tolist()
    assert collection.num_classes == 7
    assert torch.equal(all_images(tmp_path / "samples.npz"), torch.from_numpy(images))
    for index in (2299, 5, 1000, 999, -1):  # forth and back again
        assert torch.equal(collection.image(index), torch.from_numpy(images[index]))
    assert torch.equal(collection.shards[1].load(), torch.from_numpy(images[1000:2000]))
    assert torch.equal(collection.shards[0].load(), torch.from_numpy(images[:1000]))


def test_an_index_beyond_the_last_image_is_an_error(tmp_path):
    """No index wraps around to another image."""
    collection = open_images(png_folder(tmp_path, pictures(2)))
    for index in (2, -3):
        with pytest.raises(IndexError, match="2 images"):
            collection.image(index)


def npz_shards(folder: Path, images: np.ndarray, size: int) -> Path:
    """Write shards as the stage `sample` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(images), size)):
        part = images[first : first + size]
        labels = np.arange(first, first + len(part)) % 3
        np.savez(folder / f"samples-{number:05d}.npz", arr_0=part, labels=labels, seconds=np.float64(1))
    return folder


def test_a_folder_of_shards_keeps_its_order(tmp_path):
    """Shards follow their numbers; the grid beside them is no sample; an unfinished one is reported."""
    images = pictures(10)
    folder = npz_shards(tmp_path / "samples", images, 4)
    save(folder / "grid.png", pictures(1)[0])
    collection = open_images(folder)
    assert torch.equal(all_images(folder), torch.from_numpy(images))
    assert collection.labels.tolist() == [i % 3 for i in range(10)]
    assert "done.json" in collection.warnings[0]
    (folder / "done.json").write_text("{}")
    assert open_images(folder).warnings == []


def test_real_jpegs_are_read_when_asked_for(tmp_path):
    """A reference of photographs may be JPEG; samples may not."""
    for index, pixels in enumerate(pictures(2, height=16, width=16)):
        save(tmp_path / f"{index}.jpg", pixels)
    assert all_images(tmp_path, allow_jpeg=True).shape == (2, 16, 16, 3)
    refused(tmp_path, "JPEG", "PNG")


def test_bytes_behind_the_end_of_a_png_are_no_damage(tmp_path):
    """Some writers append their own data: the file decodes, so it is accepted."""
    png_folder(tmp_path, pictures(2))
    with (tmp_path / "1.png").open("ab") as file:
        file.write(b"x" * 100)
    assert len(open_images(tmp_path)) == 2


def test_files_that_are_no_images_are_reported(tmp_path):
    """A stray text file changes nothing and is not silent either; hidden files are nobody's business."""
    png_folder(tmp_path, pictures(2))
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    collection = open_images(tmp_path)
    assert len(collection) == 2
    assert len(collection.warnings) == 1
    assert "settings.json" in collection.warnings[0]


# ---- keys


def test_keys_depend_on_content_and_order_alone(tmp_path):
    """Copies under other names share their key; a changed pixel or order makes another."""
    images = pictures(4)
    key = open_images(png_folder(tmp_path / "a", images)).shards[0].key
    for index in range(4):
        save(tmp_path / "b" / f"sample-{index}.png", images[index])
    assert open_images(tmp_path / "b").shards[0].key == key
    assert open_images(png_folder(tmp_path / "c", images[::-1])).shards[0].key != key
    images[3, 0, 0, 0] ^= 1
    assert open_images(png_folder(tmp_path / "d", images)).shards[0].key != key


def test_npz_keys_are_those_of_the_pixels(tmp_path):
    """Compression does not matter, so features are shared; shape does."""
    images = pictures(4)
    np.savez(tmp_path / "a.npz", images)
    np.savez_compressed(tmp_path / "b.npz", images)
    np.savez(tmp_path / "c.npz", images.reshape(4, 4, 5, 3))
    a, b, c = (open_images(tmp_path / f"{name}.npz").shards[0].key for name in "abc")
    assert a == b != c


def test_a_png_key_needs_no_decoding(tmp_path, monkeypatch):
    """The key comes from the files' bytes."""
    collection = open_images(png_folder(tmp_path, pictures(3)))
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(collection.shards[0].key) == 64


# ---- runs


def run_of(tmp_path: Path, *cells: tuple[str, int], recorded: bool = False) -> Path:
    """A run folder with one cell per (label, seed), their samples in the store."""
    for label, seed in cells:
        case = make_case(seed=seed).model_copy(update={"label": label})
        key = f"elsewhere{seed}" if recorded else case.key("sample")
        folder = npz_shards(tmp_path / "store" / "sample" / key, pictures(6, seed=seed), 4)
        (folder / "done.json").write_text("{}")
        result = Result(
            case_id=f"id{seed}",
            suite="test",
            label=label,
            status="ok",
            artefacts={"grid": f"sample/{key}/grid.png"} if recorded else {},
            case=case.model_dump(mode="json"),
            environment=environment(),
        )
        append_result(tmp_path / "test" / "results.jsonl", result)
        after = result.model_copy(update={"artefacts": {"grid": f"pictures/id{seed}-grid.png"}})
        append_result(tmp_path / "test" / "results.jsonl", after)
    return tmp_path / "test"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_of_one_cell_needs_no_choice(tmp_path, recorded):
    """Samples are found through the cell's settings, or through what its results say of an older version."""
    run_dir = run_of(tmp_path, ("softmax", 0), recorded=recorded)
    assert torch.equal(all_images(run_dir), torch.from_numpy(pictures(6, seed=0)))
    assert open_images(run_dir).name == "softmax"


def test_a_cell_is_chosen_by_label_or_id(tmp_path):
    """With several cells the choice is the user's; the error lists the labels."""
    run_dir = run_of(tmp_path, ("softmax", 0), ("linear", 1))
    with pytest.raises(UserInputError, match="choose one: --case 'softmax', --case 'linear'"):
        open_images(run_dir)
    assert torch.equal(all_images(run_dir, case="linear"), torch.from_numpy(pictures(6, seed=1)))
    assert torch.equal(all_images(run_dir, case="id0"), torch.from_numpy(pictures(6, seed=0)))
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        open_images(run_dir, case="linaer")


def test_one_label_of_two_seeds_is_chosen_by_id(tmp_path):
    """A label that fits two cells is refused with their ids."""
    run_dir = run_of(tmp_path, ("softmax", 0), ("softmax", 1))
    with pytest.raises(UserInputError, match=r"2 cases called 'softmax'.*--case id0 .*--case id1 "):
        open_images(run_dir, case="softmax")


def test_a_run_without_its_store_says_so(tmp_path):
    """A copied run folder has no samples; neither has one whose sampling never finished."""
    run_dir = run_of(tmp_path, ("softmax", 0))
    for done in (tmp_path / "store").rglob("done.json"):
        done.unlink()
    refused(run_dir, "softmax", "run the suite again")
    shutil.rmtree(tmp_path / "store")
    refused(run_dir, "no finished samples of 'softmax'", "run the suite again")


def test_a_folder_of_runs_names_them(tmp_path):
    """Naming the runs folder instead of a run is a near miss."""
    run_of(tmp_path, ("softmax", 0))
    refused(tmp_path, "holds runs (test)")


def test_a_case_of_a_plain_folder_is_refused(tmp_path):
    """`case` means nothing outside a run, and is not ignored."""
    refused(png_folder(tmp_path, pictures(2)), "no case 'softmax'", case="softmax")


# ---- what is refused


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


def npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    """Write an npz file with these arrays."""
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


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
    """Labels of another length or kind, negative ones, and classes without an image."""
    refused(npz(tmp_path, arr_0=pictures(3), arr_1=np.arange(2)), "2 labels for 3 images")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.eye(3)), "float64 [3, 3]")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, -1, 1])), "label -1")
    refused(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 1, 9])), "3 images for 10 classes")
    few = open_images(npz(tmp_path, arr_0=pictures(3), labels=np.array([0, 2, 0])))
    assert few.warnings == [f"{few.name}: no image of class 1 of 3"]  # random labels leave classes out


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
