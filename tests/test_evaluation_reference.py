"""Reference files: what they hold, that they are checked on load, and ADM's batches."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from attnbench.errors import DataError, StorageError, UserInputError
from attnbench.evaluation.collection import pixel_digests
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.reference import (
    Provenance,
    holds,
    load_reference,
    reference_of,
    save_reference,
    with_adm_statistics,
)

PROVENANCE = Provenance(extractor="pixels", protocol="adm", identity="1", height=4, width=4, channels=3)


def features(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 4, 4, 3), generator=generator).to(torch.uint8)
    pooled = images.flatten(1).float()
    return ExtractedFeatures(pooled=pooled, spatial=pooled[:, :8], digests=pixel_digests(images))


def reference(**changes):
    return reference_of("real", features(), PROVENANCE, labels=torch.arange(30) % 3, **changes)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "real.npz"
    save_reference(path, reference(class_names=("a", "b", "c")))
    return path


def test_a_file_returns_what_was_saved(stored):
    """Statistics, features, labels, class names and provenance come back bit for bit."""
    saved, loaded = reference(class_names=("a", "b", "c")), load_reference(stored)
    for kind in ("pooled", "spatial"):
        assert torch.equal(getattr(saved, kind).mean, getattr(loaded, kind).mean)
        assert torch.equal(getattr(saved, kind).covariance, getattr(loaded, kind).covariance)
        assert torch.equal(getattr(saved.features, kind), getattr(loaded.features, kind))
    assert torch.equal(saved.labels, loaded.labels)
    assert (loaded.name, loaded.provenance, loaded.class_names) == ("real", PROVENANCE, ("a", "b", "c"))
    assert len(loaded) == loaded.pooled.n == 30


def test_the_gaussian_is_numpys(stored):
    """`mu` and `sigma` are mean and unbiased covariance of all features, as pytorch-fid reads them."""
    with np.load(stored) as arrays:
        x = features().pooled.double().numpy()
        # sums of 30 numbers below 256^2: 30 roundings of 1.1e-16 of that
        np.testing.assert_allclose(arrays["mu"], x.mean(axis=0), atol=30 * 256 * 2.2e-16)
        np.testing.assert_allclose(arrays["sigma"], np.cov(x, rowvar=False), atol=30 * 256**2 * 2.2e-16)


def test_fewer_images_may_be_kept(tmp_path):
    """The Gaussian stays that of all; which images are kept does not depend on their order."""
    found = features()
    turned = found.select(torch.arange(len(found)).flip(0))
    kept = [reference_of("real", each, PROVENANCE, most=10) for each in (found, turned)]
    assert len(kept[0]) == 10
    assert torch.equal(kept[0].features.pooled, kept[1].features.pooled)
    assert torch.equal(kept[0].pooled.covariance, reference().pooled.covariance)
    assert "all 30 images" in kept[0].gaussian_note
    save_reference(tmp_path / "few.npz", kept[0])
    loaded = load_reference(tmp_path / "few.npz")
    assert (len(loaded), loaded.pooled.n, loaded.gaussian_note) == (10, 30, kept[0].gaussian_note)


def test_a_changed_array_is_refused(stored, tmp_path):
    """One flipped bit of a covariance is found by its hash."""
    with np.load(stored) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    kept["sigma"] = kept["sigma"].copy()
    kept["sigma"][0, 0] += 1e-12
    np.savez(tmp_path / "changed.npz", **kept)
    with pytest.raises(DataError, match="'sigma' has changed"):
        load_reference(tmp_path / "changed.npz")


def test_a_cut_file_is_refused(stored):
    """Half a file is named, whether it is looked into or loaded."""
    stored.write_bytes(stored.read_bytes()[:5000])
    for read in (holds, load_reference):
        with pytest.raises(DataError, match=r"real\.npz"):
            read(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"extractor": "other"},
            r"extractor 'other', the samples have 'pixels'; score with --extractor other",
        ),
        ({"protocol": "clean"}, "score with --protocol clean"),
        ({"identity": "2"}, "weights are another file"),
        ({"channels": 1}, "both to grey, or both to RGB"),
        ({"height": 8}, "height 8, the samples have 4; bring both to one size"),
    ],
)
def test_references_of_something_else_are_refused(change, message):
    """Another network, resize, weights file or resolution: the error says what to do."""
    with pytest.raises(DataError, match=message):
        PROVENANCE.check(PROVENANCE.model_copy(update=change), "the reference real")


def test_one_image_is_no_reference():
    """A covariance needs two."""
    with pytest.raises(UserInputError, match="two images or more, real has 1"):
        reference_of("real", features(1), PROVENANCE)


def test_adms_statistics_take_the_place_of_the_images(tmp_path):
    """The Gaussians of the file are used, its images' features stay for precision and recall."""
    path = tmp_path / "VIRTUAL.npz"
    ours = reference()
    arrays = {
        "mu": ours.pooled.mean + 1,
        "sigma": 2 * ours.pooled.covariance,
        "mu_s": ours.spatial.mean,
        "sigma_s": ours.spatial.covariance,
    }
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    adm = with_adm_statistics(ours, path)
    assert torch.equal(adm.pooled.mean, ours.pooled.mean + 1)
    assert torch.equal(adm.features.pooled, ours.features.pooled)
    assert adm.pooled.n == 0
    assert "N not stated" in adm.gaussian_note


def test_adms_statistics_of_another_network_are_refused(tmp_path):
    """A mean of another width is no Gaussian of these features."""
    path = tmp_path / "VIRTUAL.npz"
    np.savez(path, mu=np.zeros(7), sigma=np.eye(7), mu_s=np.zeros(7), sigma_s=np.eye(7))
    with pytest.raises(DataError, match=r"mu and sigma are \[7\] and \[7, 7\], the network gives \[48\]"):
        with_adm_statistics(reference(), path)


def test_adms_covariance_must_belong_to_its_mean(tmp_path):
    """A right mean with a covariance of another width, and an array that is cut, are refused by name."""
    path, ours = tmp_path / "VIRTUAL.npz", reference()
    arrays = {"mu": np.zeros(48), "sigma": np.eye(7), "mu_s": np.zeros(48), "sigma_s": np.eye(48)}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"sigma are \[48\] and \[7, 7\]"):
        with_adm_statistics(ours, path)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # inside mu, whose checksum is in the archive
    path.write_bytes(content)
    with pytest.raises(DataError, match="its statistics cannot be read"):
        with_adm_statistics(ours, path)


def test_a_file_of_another_format_is_refused(stored):
    """A later format is not guessed at."""
    with np.load(stored) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    meta = json.loads(str(kept["meta"])) | {"format": 99}
    kept["meta"] = np.array(json.dumps(meta))
    np.savez(stored, **kept)
    with pytest.raises(DataError, match="format 99"):
        load_reference(stored)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    """A disk that fills up while a reference is written leaves no file at all."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        save_reference(tmp_path / "real.npz", reference())
    assert list(tmp_path.iterdir()) == []


def test_an_npz_is_known_by_its_content(tmp_path):
    """A renamed .npy file is refused, capitals in the suffix change nothing."""
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="is no whole npz file"):
        holds(tmp_path / "one.npz")
    np.savez(tmp_path / "two.npz", mu=np.zeros(3))
    (tmp_path / "two.npz").rename(tmp_path / "TWO.NPZ")
    assert holds(tmp_path / "TWO.NPZ") == {"mu"}


def test_a_text_file_is_no_npz(tmp_path):
    """`holds` knows what is not an npz without opening it."""
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert holds(path) == set()
    assert holds(Path("nowhere.npz")) == set()
    assert zipfile.is_zipfile(path) is False
