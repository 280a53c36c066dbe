"""The feature cache: nothing is extracted twice, nothing damaged or non-finite is kept."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.data import load_dataset
from attnbench.errors import DataError, NonFiniteError, PluginError, StorageError, UserInputError
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.dataset_images import dataset_images
from attnbench.evaluation.features import FeatureCache
from attnbench.evaluation.images import open_images
from attnbench.metrics.spatial import first_channels
from attnbench.plugins import Provided, registry
from attnbench.specs import DigitsData, ImageFolderData

SIDE = 4


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Random images uint8 [count, 4, 4, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def saved(path: Path, images: np.ndarray) -> ImageCollection:
    """Write images as npz in ADM's layout and open them."""
    np.savez(path, images)
    return open_images(path)


class Network:
    """Averages, maps and sums of an image's pixels, exact in float32; counts what it is asked."""

    def __init__(self, before_batch: Callable[[torch.Tensor], None] = lambda images: None) -> None:
        self.images, self.loads, self.sizes = 0, 0, set()
        self.before_batch = before_batch

    def load(self, inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
        self.loads += 1
        return self

    def __call__(self, images: torch.Tensor) -> Features:
        self.before_batch(images)
        self.images += len(images)
        self.sizes.add(len(images))
        x = images.float().permute(0, 3, 1, 2)
        return Features(
            pooled=x.mean(dim=3).flatten(1),  # [B, 12]: sums of four, over four
            logits=x.sum(dim=(2, 3)),  # [B, 3]
            spatial=first_channels(x[..., :2, :2], 12),  # [B, 12]
        )


def make_cache(folder: Path, network: Network, **changes) -> FeatureCache:
    """A cache of that network in a folder."""
    batch_size = changes.pop("batch_size", 64)
    protocol, origin, code = (
        changes.pop("protocol", "adm"),
        changes.pop("origin", "test 1"),
        changes.pop("code", "c"),
    )
    record = FeatureExtractor(
        name="fake", suffix="fake", summary="", source="", load=network.load, protocols=("adm", "clean")
    )
    record = dataclasses.replace(record, **changes)
    inputs = ExtractorInputs(device=torch.device("cpu"), seed=0, cache_dir=folder, protocol=protocol)
    provided = Provided(record=record, plugin="test", origin=origin, fingerprint=lambda: code)
    return FeatureCache(folder=folder, extractor=provided, inputs=inputs, batch_size=batch_size)


def files(cache: FeatureCache) -> list[Path]:
    """Everything that lies in the cache's folder."""
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_one_pass_gives_all_kinds_of_features(tmp_path):
    """Pooled, spatial and logits come in the order of the images, and are those of the network."""
    images = pictures(1100)
    network = Network()
    seen: list[int] = []
    found = make_cache(tmp_path / "cache", network).features(saved(tmp_path / "a.npz", images), seen.append)
    expected = Network()(torch.from_numpy(images))
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(found.spatial, expected.spatial)
    assert torch.equal(found.logits, expected.logits)
    assert len(found) == sum(seen) == network.images == 1100
    assert network.sizes == {64, 1000 % 64, 100 % 64}
    assert found.pooled.dtype == torch.float32
    assert found.digests.shape == (1100, 16)


def test_a_second_evaluation_neither_loads_nor_decodes(tmp_path, monkeypatch):
    """Known features come from the disk: no network, no image, the same numbers, progress all the same."""
    for index, pixels in enumerate(pictures(5)):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    first = make_cache(tmp_path / "cache", Network()).features(_open_pngs(tmp_path))
    collection, network, seen = _open_pngs(tmp_path), Network(), []
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("decoded"))
    second = make_cache(tmp_path / "cache", network).features(collection, seen.append)
    assert network.loads == 0
    assert seen == [5]
    for kind in ("pooled", "spatial", "logits", "digests"):
        assert torch.equal(getattr(first, kind), getattr(second, kind))


def _open_pngs(folder: Path) -> ImageCollection:
    pngs = folder / "pngs"
    pngs.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.rename(pngs / path.name)
    return open_images(pngs)


def test_batch_size_changes_nothing(tmp_path):
    """Tails of any size give the same rows; this network's sums are exact, so bit for bit."""
    collection = saved(tmp_path / "a.npz", pictures(103))
    by_size = [
        make_cache(tmp_path / str(b), Network(), batch_size=b).features(collection) for b in (1, 50, 103)
    ]
    assert all(torch.equal(by_size[0].pooled, other.pooled) for other in by_size[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"protocol": "clean"},
        {"identity": lambda inputs: "other weights"},
        {"origin": "test 2"},
        {"code": "changed"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_network_does_not_reuse(tmp_path, change):
    """Name, protocol, identity, provider and code all stand in the key."""
    collection = saved(tmp_path / "a.npz", pictures(10))
    make_cache(tmp_path / "cache", Network()).features(collection)
    network = Network()
    make_cache(tmp_path / "cache", network, **change).features(collection)
    assert network.images == 10


def test_added_images_extract_only_their_shards(tmp_path):
    """Shards are known by content: a longer set starts with the shards of the shorter one."""
    images = pictures(2100)
    make_cache(tmp_path / "cache", Network()).features(saved(tmp_path / "a.npz", images[:2000]))
    network = Network()
    make_cache(tmp_path / "cache", network).features(saved(tmp_path / "b.npz", images))
    assert network.images == 100


def test_canonical_rows_do_not_depend_on_the_order(tmp_path):
    """Shuffled images give the same canonical features; equal images are ties and harmless."""
    images = pictures(1200)
    images[7] = images[1150]
    shuffled = images[np.random.default_rng(1).permutation(1200)]
    a = make_cache(tmp_path / "a", Network()).features(saved(tmp_path / "a.npz", images))
    b = make_cache(tmp_path / "b", Network()).features(saved(tmp_path / "b.npz", shuffled))
    assert not torch.equal(a.pooled, b.pooled)
    a, b = (features.select(features.canonical_order()) for features in (a, b))
    for kind in ("pooled", "spatial", "logits", "digests"):
        assert torch.equal(getattr(a, kind), getattr(b, kind))
    digests = [bytes(row.tolist()) for row in a.digests]
    assert digests == sorted(digests)
    assert len(set(digests)) == 1199


def test_digests_tell_shapes_apart(tmp_path):
    """The same bytes as another shape are another image."""
    images = pictures(4)
    a = make_cache(tmp_path / "c", Network()).features(saved(tmp_path / "a.npz", images))
    b = make_cache(tmp_path / "c", Network()).features(saved(tmp_path / "b.npz", images.reshape(4, 2, 8, 3)))
    assert not (a.digests == b.digests).all(dim=1).any()


# ---- killed, damaged, wrong


def extract_and_be_killed(folder: str, images: str, batches: int) -> None:
    """Extract with a network in whose call number `batches` SIGKILL strikes."""
    torch.set_num_threads(1)
    left = [batches]

    def strike(_: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    make_cache(Path(folder), Network(strike)).features(open_images(Path(images)))


def test_a_killed_extraction_continues_with_the_unfinished_shard(tmp_path):
    """SIGKILL in the third of four shards: two are kept, two are extracted, the result is the same."""
    collection = saved(tmp_path / "a.npz", pictures(3500))
    command = [sys.executable, __file__, str(tmp_path / "cache"), str(tmp_path / "a.npz"), "40"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    network = Network()
    cache = make_cache(tmp_path / "cache", network)
    assert [cache.path(shard).exists() for shard in collection.shards] == [True, True, False, False]
    resumed = cache.features(collection)
    assert network.images == 1500
    assert cache.warnings == []
    whole = make_cache(tmp_path / "other", Network()).features(collection)
    assert torch.equal(resumed.pooled, whole.pooled)
    assert torch.equal(resumed.digests, whole.digests)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _forge(path: Path) -> None:
    save_file(load_file(path), path)  # readable, but nobody vouches for it


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _forge])
def test_a_damaged_file_is_extracted_again_and_reported(tmp_path, damage):
    """Damage is neither trusted nor silent, and costs its own shard only."""
    collection = saved(tmp_path / "a.npz", pictures(1200))
    first = make_cache(tmp_path / "cache", Network())
    expected = first.features(collection)
    damage(first.path(collection.shards[1]))
    network = Network()
    cache = make_cache(tmp_path / "cache", network)
    assert torch.equal(cache.features(collection).pooled, expected.pooled)
    assert network.images == 200
    assert len(cache.warnings) == 1
    assert "is damaged" in cache.warnings[0]
    again = make_cache(tmp_path / "cache", Network())
    again.features(collection)
    assert again.warnings == []


@pytest.mark.parametrize("kind", ["pooled", "spatial", "logits"])
def test_non_finite_features_leave_no_file(tmp_path, kind):
    """The image is named, and its shard is not kept."""
    images = pictures(1100)

    class Broken(Network):
        def __call__(self, batch: torch.Tensor) -> Features:
            features = super().__call__(batch)
            odd = (batch == torch.from_numpy(images[1077])).flatten(1).all(dim=1)
            getattr(features, kind)[odd, 1] = float("nan")
            return features

    collection = saved(tmp_path / "a.npz", images)
    cache = make_cache(tmp_path / "cache", Broken())
    with pytest.raises(NonFiniteError, match=rf"{kind} features of image 1077 of .*a\.npz"):
        cache.features(collection)
    assert files(cache) == [cache.path(collection.shards[0])]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pooled, "returned a Tensor"),
        (lambda f: dataclasses.replace(f, pooled=f.pooled[1:]), r"pooled of shape \[9, 12\]"),
        (lambda f: dataclasses.replace(f, spatial=f.spatial[:, :, None]), r"spatial of shape \[10, 12, 1\]"),
        (lambda f: dataclasses.replace(f, logits=f.logits.long()), "int64"),
    ],
)
def test_features_of_a_wrong_shape_are_the_plugins_fault(tmp_path, change, words):
    """The contract is checked at every call; nothing is kept."""

    class Wrong(Network):
        def __call__(self, images: torch.Tensor) -> Features:
            return change(super().__call__(images))

    cache = make_cache(tmp_path / "cache", Wrong())
    with pytest.raises(PluginError, match=f"extractor fake {words}|extractor fake returned .*{words}"):
        cache.features(saved(tmp_path / "a.npz", pictures(10)))
    assert files(cache) == []


def test_kinds_must_not_change_between_batches(tmp_path):
    """A network that has logits for some batches only is refused."""

    class Moody(Network):
        def __call__(self, images: torch.Tensor) -> Features:
            features = super().__call__(images)
            return features if len(images) == 64 else dataclasses.replace(features, logits=None)

    with pytest.raises(PluginError, match="from batch to batch"):
        make_cache(tmp_path / "cache", Moody()).features(saved(tmp_path / "a.npz", pictures(70)))


def test_a_few_single_colours_are_counted(tmp_path):
    """The warning comes from the pixels, and again from the cache when nothing is decoded."""
    images = pictures(20)
    images[[3, 9]] = 128
    for _ in range(2):
        collection = saved(tmp_path / "a.npz", images)
        make_cache(tmp_path / "cache", Network()).features(collection)
        assert len(collection.warnings) == 1
        assert collection.warnings[0].startswith("2 of 20 images are one single colour, first number 3")


def test_an_image_that_cannot_be_decoded_keeps_what_is_done(tmp_path):
    """Damage in the second shard leaves the features of the first."""
    np.savez_compressed(tmp_path / "a.npz", pictures(2000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-3000:-2000] = bytes(1000)
    (tmp_path / "a.npz").write_bytes(content)
    collection = open_images(tmp_path / "a.npz")
    cache = make_cache(tmp_path / "cache", Network())
    for _ in range(2):  # what follows the damage is not taken for what comes before it
        with pytest.raises(DataError, match=r"a\.npz cannot be read"):
            cache.features(collection)
    assert files(cache) == [cache.path(collection.shards[0])]


def test_a_protocol_the_extractor_has_not(tmp_path):
    """The error lists those it has."""
    cache = make_cache(tmp_path / "cache", Network(), protocol="dirty")
    with pytest.raises(UserInputError, match="'dirty'; choose one of: adm, clean"):
        cache.features(saved(tmp_path / "a.npz", pictures(2)))


def test_a_place_that_cannot_be_written(tmp_path):
    """A file where the cache's folder should be is one clear error."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make_cache(tmp_path / "cache", Network()).features(saved(tmp_path / "a.npz", pictures(2)))


# ---- real images of datasets, a real extractor


def test_datasets_are_collections_too(tmp_path):
    """The digits, held out: their labels, names and pixels, keyed by content."""
    dataset = load_dataset(DigitsData())
    collection = dataset_images(dataset, "held-out")
    assert (len(collection), collection.channels, collection.num_classes) == (len(dataset.held_out), 1, 10)
    assert torch.equal(collection.image(5), dataset.held_out.get(torch.tensor([5]))[0])
    assert torch.equal(collection.labels, dataset.held_out.labels)
    keys = {shard.key for shard in dataset_images(dataset, "train").shards}
    assert len(keys) == 2
    assert keys == {shard.key for shard in dataset_images(dataset, "train").shards}


def test_image_folders_are_keyed_by_files_and_side(tmp_path):
    """Replacing a file, or another size, makes another key; nothing is decoded for it."""
    for index, pixels in enumerate(pictures(4)):
        (tmp_path / "cat").mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(tmp_path / "cat" / f"{index}.png")

    def key(side: int) -> str:
        spec = ImageFolderData(path=tmp_path, image_size=side, held_out_fraction=0)
        return dataset_images(load_dataset(spec), "train").shards[0].key

    before = key(4)
    assert key(4) == before != key(2)
    PIL.Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "cat" / "2.png")
    assert key(4) != before
    nothing_kept = load_dataset(ImageFolderData(path=tmp_path, image_size=4, held_out_fraction=0))
    with pytest.raises(DataError, match="no held-out images"):
        dataset_images(nothing_kept, "held-out")


def test_a_shipped_extractor_through_the_cache(tmp_path):
    """EfficientNet-Lite0's features are those of the network, whatever batch they were in."""
    provided = registry().extractors["efficientnet-lite0"]
    inputs = ExtractorInputs(device=torch.device("cpu"), seed=0, cache_dir=tmp_path)
    cache = FeatureCache(folder=tmp_path / "cache", extractor=provided, inputs=inputs, batch_size=3)
    images = pictures(4)
    found = cache.features(saved(tmp_path / "a.npz", images))
    direct = cache.network(torch.from_numpy(images))
    # one batch of 4 against 3 + 1: convolutions may sum in another order, a few fp32 roundings per layer
    torch.testing.assert_close(found.pooled, direct.pooled, rtol=1e-4, atol=1e-4)
    assert found.logits.shape == (4, 1000)


if __name__ == "__main__":
    extract_and_be_killed(sys.argv[1], sys.argv[2], int(sys.argv[3]))
