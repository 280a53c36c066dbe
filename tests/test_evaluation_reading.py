"""How images are read for a network: once, in order, in bounded memory, and none after an error."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from image_sets import npz_shards, pictures, png_folder
from test_evaluation_features import Network, make_cache

from attnbench.errors import DataError
from attnbench.evaluation import collection, features, image_files, npz_files
from attnbench.evaluation.images import open_images
from attnbench.metrics import threads
from attnbench.metrics.threads import each, in_advance


@pytest.fixture(params=[1, 3])
def num_threads(request, monkeypatch):
    """As many threads for images, whatever this machine has."""
    monkeypatch.setattr(threads, "num_threads", lambda: request.param)
    return request.param


def test_results_come_in_order_and_the_first_error_is_raised(num_threads):
    """Of two items that fail the earlier one is told, and what the function gives stands in its place."""
    assert each(lambda x: x * x, range(50)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError, match="7"):
        each(lambda x: (_ for _ in ()).throw(ZeroDivisionError(x)) if x in (7, 30) else x, range(50))
    assert each(lambda x: x, []) == []


def test_threads_are_torchs():
    """One number says what this process may take, and it is that of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert threads.num_threads() == 1
        assert each(lambda _: threading.current_thread(), range(3)) == [threading.current_thread()] * 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_is_made_in_advance_than_asked_for(ahead):
    """While item i is used at most i + 1 + ahead have been begun; an error comes where it belongs."""
    begun = []

    def source():
        for i in range(6):
            begun.append(i)
            yield i
        raise DataError("the seventh")

    used = []
    items = in_advance(source(), ahead)
    for i in range(6):
        used.append(next(items))
        assert len(begun) <= i + 1 + ahead
    with pytest.raises(DataError, match="the seventh"):
        next(items)
    assert used == list(range(6))


def test_whoever_stops_early_leaves_no_thread_behind():
    """After the close nothing is made any more."""
    begun = []
    items = in_advance((begun.append(i) or i for i in range(100)), 2)
    assert next(items) == 0
    items.close()
    count = len(begun)
    assert count <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor") and t.is_alive()]


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kind", ["png", "npz", "shards"])
def test_pieces_and_threads_change_no_bit(tmp_path, monkeypatch, num_threads, kind, ahead):
    """Small pieces, read ahead in threads, give the batches, features and digests of whole shards."""
    images = pictures(45, height=4)
    if kind == "png":
        folder = png_folder(tmp_path / "samples", images)
    elif kind == "npz":
        folder = tmp_path / "samples.npz"
        np.savez_compressed(folder, images)
    else:
        folder = npz_shards(tmp_path / "samples", images, 20)
    expected = make_cache(tmp_path / "whole", Network(), batch_size=8).features(open_images(folder))
    monkeypatch.setattr(features, "PIECE_SIZE", 16)
    monkeypatch.setattr(image_files, "SHARD_SIZE", 20)
    monkeypatch.setattr(npz_files, "SHARD_SIZE", 20)
    monkeypatch.setattr(features.FeatureCache, "_pieces_ahead", property(lambda self: ahead))
    network = Network()
    found = make_cache(tmp_path / "pieces", network, batch_size=8).features(open_images(folder))
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(found.digests, expected.digests)
    assert network.images == 45
    assert network.sizes == {8, 4, 5}  # 20 images are 8 + 8 + 4, whatever a piece is


def test_files_are_read_once(tmp_path, monkeypatch):
    """The bytes that were hashed are those that are decoded; beyond the budget a file is read again."""
    folder = png_folder(tmp_path / "samples", pictures(6, height=4))
    opened = open_images(folder)
    read, decoded = [], []
    read_bytes, open_image = Path.read_bytes, PIL.Image.open
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    monkeypatch.setattr(PIL.Image, "open", lambda source: decoded.append(source) or open_image(source))
    make_cache(tmp_path / "cache", Network()).features(opened)
    assert sorted(read) == [f"{i}.png" for i in range(6)]
    assert not [source for source in decoded if isinstance(source, Path)]
    decoded.clear()
    monkeypatch.setattr(image_files, "KEPT_BYTES", 0)
    make_cache(tmp_path / "another", Network()).features(open_images(folder))
    assert len([source for source in decoded if isinstance(source, Path)]) >= 6


def test_pixels_of_an_npz_are_hashed_once(tmp_path, monkeypatch):
    """The shard's key is made of the digests that the features carry."""
    folder = npz_shards(tmp_path / "samples", pictures(30, height=4), 10)
    hashed = []

    def counting(images):
        hashed.append(len(images))
        return collection.pixel_digests(images)

    monkeypatch.setattr(npz_files, "pixel_digests", counting)
    monkeypatch.setattr(features, "pixel_digests", counting)
    opened = open_images(folder)
    found = make_cache(tmp_path / "cache", Network()).features(opened)
    assert sum(hashed) == 30
    whole = torch.cat([shard.load() for shard in opened.shards])
    assert torch.equal(found.digests, collection.pixel_digests(whole))
    assert len({shard.key for shard in opened.shards}) == 3


def test_a_file_cut_after_its_key_was_found_is_named(tmp_path, num_threads):
    """What is damaged is told with its name, from a piece as from a shard."""
    folder = png_folder(tmp_path / "samples", pictures(12, height=40, width=40))
    content = (folder / "9.png").read_bytes()
    middle = len(content) // 2
    (folder / "9.png").write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    with pytest.raises(DataError, match=r"cannot decode .*9\.png"):
        make_cache(tmp_path / "cache", Network()).features(open_images(folder))
