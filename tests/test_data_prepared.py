"""The dataset `prepared`: random access over shards, the card's promises, and use by stages and plans."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import class_files, picture, write_files

from attnbench.data import class_names, load_dataset, preparing
from attnbench.data.decoding import decode
from attnbench.data.prepared import PreparedImages
from attnbench.data.request import PreparationRequest
from attnbench.data.selection import Selection
from attnbench.errors import DataError
from attnbench.specs import ImageFolderData, PreparedData

SIDE = 16


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A set of fifteen images in shards of four, a file of which is damaged; three are held out."""
    monkeypatch.setattr(preparing, "FILES_PER_SHARD", 4)
    write_files(tmp_path / "photos", class_files() | {"cat/bad.png": b"no"})
    preparing.prepare(
        PreparationRequest(
            source=tmp_path / "photos",
            folder=tmp_path / "set",
            image_size=SIDE,
            selection=Selection(held_out="0.2"),
            max_unreadable=0.1,
        ),
        lambda done, total, note: None,
    )
    return tmp_path / "set"


def contents(images):
    pixels = images.get(torch.arange(len(images))).numpy()
    return {(image.tobytes(), label) for image, label in zip(pixels, images.labels.tolist(), strict=True)}


def test_it_holds_what_the_folder_holds(folder, tmp_path):
    """Images, labels and both parts equal those of image-folder over the same files."""
    (tmp_path / "photos/cat/bad.png").unlink()  # a set's split counts it: take all of both parts
    prepared = load_dataset(PreparedData(path=folder, image_size=SIDE))
    assert class_names(PreparedData(path=folder, image_size=SIDE)) == prepared.class_names
    spec = ImageFolderData(path=tmp_path / "photos", image_size=SIDE, held_out_fraction=0.0)
    whole = load_dataset(spec)
    assert (prepared.class_names, prepared.channels, prepared.flip) == (whole.class_names, 3, True)
    assert contents(prepared.train) | contents(prepared.held_out) == contents(whole.train)
    assert (len(prepared.train), len(prepared.held_out)) == (13, 2), "the damaged file was to be held out"
    assert prepared.unreadable == ("cat/bad.png: not an image that pillow knows",)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=25), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_any_indices_over_any_shards(wanted, sizes):
    """Repeated, unsorted and no indices, shards of any size and empty ones: as plain indexing."""
    numbers = np.arange(sum(sizes), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (sum(sizes), 2, 2, 3))
    shards = tuple(np.split(images, np.cumsum(sizes)[:-1]))
    source = PreparedImages(shards, torch.zeros(sum(sizes), dtype=torch.int64), 2)
    indices = torch.tensor([w for w in wanted if w < sum(sizes)], dtype=torch.int64)
    assert torch.equal(source.get(indices), torch.from_numpy(images.copy())[indices])


@pytest.mark.parametrize("index", [-1, 10**6])
def test_an_index_that_is_not_there_is_an_error(index, folder):
    """No wrapping around: that would be another image."""
    with pytest.raises(IndexError, match="images are 0 to"):
        load_dataset(PreparedData(path=folder, image_size=SIDE)).train.get(torch.tensor([0, index]))


def test_another_image_size_is_refused(folder):
    """The suite's size is known without the data, and must be the card's."""
    with pytest.raises(DataError, match=r"holds images of 16 px, data\.image_size is 256"):
        load_dataset(PreparedData(path=folder))


@pytest.mark.parametrize("damage", ["cut", "missing", "other-type", "no-card", "card-cut", "counts"])
def test_a_damaged_set_cannot_be_loaded(damage, folder):
    """A shard that is cut, gone or of another kind, and a card that is not whole, are one clear error."""
    shard, card = folder / "train/images-00001.npy", folder / "card.json"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    elif damage == "other-type":
        shard.write_bytes(shard.read_bytes().replace(b"|u1", b"|i1"))
    elif damage == "no-card":
        card.unlink()
    elif damage == "card-cut":
        card.write_bytes(card.read_bytes()[:-100])
    else:
        content = json.loads(card.read_text())
        content["parts"]["train"]["num_images"] += 1
        card.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"images-00001\.npy|card\.json"):
        load_dataset(PreparedData(path=folder, image_size=SIDE))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "tiff", "ppm"]))
def test_no_damage_to_an_image_escapes(data, kind):
    """Bytes changed, cut or inserted anywhere: an image of the right shape or a DataError, nothing else."""
    content = bytearray(picture(1, (20, 14), kind=kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        image = decode(io.BytesIO(bytes(content)), 8)
    except DataError:
        return
    assert image.shape == (8, 8, 3)


def test_a_thread_of_pixels_is_refused():
    """An image of 1 x 60,000 would fill gigabytes before its crop: it is a fault, not an out-of-memory."""
    with pytest.raises(DataError, match="too long and narrow"):
        decode(io.BytesIO(picture(0, (60_000, 1))), 256)
