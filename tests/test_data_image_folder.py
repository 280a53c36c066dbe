"""The image-folder dataset: layout, splits, conversion, and every kind of unreadable file."""

import numpy as np
import PIL.Image
import pytest
import torch

from attnbench.data import class_names, load_dataset
from attnbench.data.decoding import centre_crop
from attnbench.errors import DataError
from attnbench.specs import ImageFolderData


def make_folder(root, per_class=4, size=(20, 12)):
    """Write two classes of images of one colour each: cat i is (10 i, 0, 0), dog i is (0, 10 i, 0)."""
    for label, name in enumerate(["cat", "dog"]):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            colour = tuple(10 * index if channel == label else 0 for channel in range(3))
            PIL.Image.new("RGB", size, colour).save(root / name / f"{index}.png")
    return root


def load(path, **settings):
    return load_dataset(ImageFolderData(path=path, **{"image_size": 8} | settings))


def test_classes_are_folders_in_order_of_name(tmp_path):
    """Labels number the sorted folder names; images come back as uint8 RGB of the asked side."""
    dataset = load(make_folder(tmp_path), held_out_fraction=0.0)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    images = dataset.train.get(torch.tensor([3, 5]))
    assert (images.shape, images.dtype) == (torch.Size([2, 8, 8, 3]), torch.uint8)
    assert images[0, 4, 4].tolist() == [30, 0, 0]
    assert images[1, 4, 4].tolist() == [0, 10, 0]


def test_classes_are_named_without_opening_an_image(tmp_path):
    """Profiling and planning ask for the classes of millions of images; hidden folders are none."""
    spec = ImageFolderData(path=make_folder(tmp_path))
    (tmp_path / ".thumbnails").mkdir()
    assert class_names(spec) == load_dataset(spec).class_names == ("cat", "dog")
    for file in tmp_path.glob("*/*.png"):
        file.write_bytes(b"no image")
    assert class_names(spec) == ("cat", "dog")
    with pytest.raises(DataError, match="does not exist"):
        class_names(ImageFolderData(path=tmp_path / "nowhere"))


def test_the_split_depends_on_names_alone(tmp_path):
    """Half of each class is held out, the same half wherever the folder lies, none in both parts."""
    first = load(make_folder(tmp_path / "a"), held_out_fraction=0.5)
    second = load(make_folder(tmp_path / "b"), held_out_fraction=0.5)
    assert first.train.names == second.train.names
    assert torch.bincount(first.held_out.labels).tolist() == [2, 2]
    assert not set(first.train.names) & set(first.held_out.names)


def test_a_file_that_is_no_image_is_named(tmp_path):
    """Empty, foreign and 16-bit images are listed with reasons, other files counted; the rest is used."""
    make_folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "text.png").write_text("not an image")
    (tmp_path / "cat" / "empty.jpg").touch()
    (tmp_path / "dog" / "more").mkdir()
    PIL.Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(tmp_path / "dog" / "deep.png")
    dataset = load(tmp_path, held_out_fraction=0.0)
    assert [line.split(": ")[0] for line in dataset.unreadable] == [
        "cat/empty.jpg",
        "cat/text.png",
        "dog/deep.png",
    ]
    assert "I;16" in dataset.unreadable[2]
    assert dataset.remarks == (
        f"left out of {tmp_path}: 2 files and folders in class folders that are no images "
        "(cat/notes.txt; dog/more/ with 0 images)",
    )
    assert len(dataset.train) == 8


def test_an_image_cut_behind_its_header_is_named_when_it_is_decoded(tmp_path):
    """A file whose header is whole and whose pixels are not raises a DataError with its path."""
    make_folder(tmp_path, size=(64, 64))
    path = tmp_path / "cat" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    dataset = load(tmp_path, held_out_fraction=0.0)
    assert dataset.unreadable == ()
    with pytest.raises(DataError, match=r"cat/0\.png"):
        dataset.train.get(torch.arange(8))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_pixel_mode_becomes_rgb(tmp_path, mode):
    """Grey, palette, alpha and CMYK images of white come out as white RGB."""
    (tmp_path / "only").mkdir()
    PIL.Image.new("RGB", (9, 9), "white").convert(mode).save(
        tmp_path / "only" / ("a.jpg" if mode == "CMYK" else "a.png")
    )
    image = load(tmp_path, held_out_fraction=0.0).train.get(torch.tensor([0]))
    assert image.shape == (1, 8, 8, 3)
    assert (image >= 254).all()  # JPEG may be off by one


def test_missing_folder(tmp_path):
    """A path that does not exist is named."""
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_no_class_folders(tmp_path):
    """Images without class folders explain the layout."""
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"no sub-folders; .*<class>/<image>"):
        load(tmp_path)


def test_a_class_without_readable_images(tmp_path):
    """A class of unreadable files is an error that shows the first of them."""
    make_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"empty holds no readable image .*x\.jpg"):
        load(tmp_path)


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (40, 17), (100, 70), (5, 6)])
def test_centre_crop_equals_adms(size):
    """Same pixels as guided-diffusion's center_crop_arr, for larger, smaller and lopsided images."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ours = np.asarray(centre_crop(PIL.Image.fromarray(pixels), 8))
    assert np.array_equal(ours, adm_centre_crop(PIL.Image.fromarray(pixels), 8))


def adm_centre_crop(image, image_size):
    """guided-diffusion's center_crop_arr, as published."""
    while min(*image.size) >= 2 * image_size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=PIL.Image.BOX)
    scale = image_size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=PIL.Image.BICUBIC)
    array = np.array(image)
    top = (array.shape[0] - image_size) // 2
    left = (array.shape[1] - image_size) // 2
    return array[top : top + image_size, left : left + image_size]
