"""References as users have them: statistics alone, raw images of mixed sizes, a prepared set."""

import numpy as np
import pytest
import torch
from command_line import attnbench_here
from extractor_cases import inputs
from image_sets import pictures, png_folder, save

from attnbench.contract import FeatureExtractor, Features
from attnbench.data import preparing
from attnbench.data.request import PreparationRequest
from attnbench.data.selection import Selection
from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.features import FeatureCache
from attnbench.evaluation.images import open_images
from attnbench.evaluation.scorer import Scorer
from attnbench.plugins import Provided
from attnbench.specs import EvaluateSpec

WIDTH, SPATIAL = 6, 4


def extract(images):
    rows = images.flatten(1).float() / 255
    return Features(pooled=rows[:, :WIDTH], spatial=rows[:, :SPATIAL], logits=rows[:, :3])


def scorer(folder, **settings):
    record = FeatureExtractor(
        name="pixels", suffix="px", summary="", source="", load=lambda inputs: extract, protocols=("adm",)
    )
    cache = FeatureCache(
        folder=folder / "cache",
        extractor=Provided(record=record, plugin="imagined", origin="test"),
        inputs=inputs(),
    )
    return Scorer(settings=EvaluateSpec(extractor="pixels", kd_subset_size=10, **settings), cache=cache)


@pytest.fixture
def samples(tmp_path):
    return open_images(png_folder(tmp_path / "samples", pictures(40, seed=1)))


@pytest.fixture
def real(tmp_path):
    """Arrays that ADM would store: statistics of pooled and spatial features of fifty real images."""
    png_folder(tmp_path / "real", pictures(50))
    reference = scorer(tmp_path).open_reference(tmp_path / "real")
    kinds = {"": reference.pooled, "_s": reference.spatial}
    return {
        name + suffix: tensor.numpy()
        for suffix, found in kinds.items()
        for name, tensor in (("mu", found.mean), ("sigma", found.covariance))
    }


def stored(tmp_path, **arrays):
    np.savez(tmp_path / "stats.npz", **arrays)
    return tmp_path / "stats.npz"


def scored(judge, path, samples):
    reference = judge.open_reference(path)
    return {m.name: m for m in judge.measure(reference, samples)}


def test_statistics_alone_give_the_frechet_distances(tmp_path, samples, real):
    """The values and intervals are those of the images, the others are left out by name."""
    whole = scored(scorer(tmp_path), tmp_path / "real", samples)
    judge = scorer(tmp_path)
    found = scored(judge, stored(tmp_path, **real), samples)
    assert list(found) == ["FD-px", "sFD-px", "IS-px"]
    for name, one in found.items():
        assert one.value == pytest.approx(whole[name].value, rel=1e-9)
        assert one.interval == pytest.approx(whole[name].interval, rel=1e-5)
    assert "N not stated" in found["FD-px"].note
    (left,) = (text for text in judge.warnings if text.startswith("left out"))
    assert "KD-px, sKD-px, P-px, R-px (kd,skd,precision,recall)" in left
    assert any("does not say of which network" in text for text in judge.warnings)


def test_pooled_statistics_alone_have_no_spatial_distance(tmp_path, samples, real):
    """As pytorch-fid and clean-fid store them, in float32 and float64."""
    for dtype in (np.float32, np.float64):
        arrays = {name: real[name].astype(dtype) for name in ("mu", "sigma")}
        found = scored(scorer(tmp_path), stored(tmp_path, **arrays), samples)
        assert list(found) == ["FD-px", "IS-px"]


def test_metrics_that_were_asked_for_are_refused_by_name(tmp_path, samples, real):
    """Recall by name needs images, and the error says which metrics and why."""
    judge = scorer(tmp_path, metrics=["fd", "recall", "sfd"])
    with pytest.raises(UserInputError, match=r"sFD-px \(recall,sfd\): .*statistics alone"):
        judge.open_reference(stored(tmp_path, mu=real["mu"], sigma=real["sigma"]))


@pytest.mark.parametrize("names", [("mu1", "sigma1"), ("arr_0", "arr_1"), ("mean", "cov")])
def test_a_mean_and_a_covariance_by_their_shapes(tmp_path, samples, real, names):
    """One vector and one matrix that fit, and nothing else: they are taken, and the note names them."""
    path = stored(tmp_path, **dict(zip(names, (real["mu"], real["sigma"]), strict=True)))
    found = scored(scorer(tmp_path), path, samples)
    assert found["FD-px"].value == scored(scorer(tmp_path), tmp_path / "real", samples)["FD-px"].value
    assert f"the {names[0]} and {names[1]} of stats.npz" in found["FD-px"].note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mu, sigma: {"a": mu, "b": mu, "c": sigma}, r"not clear: a \[6\], b \[6\], c \[6, 6\]"),
        (lambda mu, sigma: {"a": mu[:3], "c": sigma}, r"not clear: a \[3\], c \[6, 6\]"),
        (lambda mu, sigma: {"mu": mu, "sigma": np.diag(sigma)}, r"must be floating point \[F\] and \[F, F\]"),
        (lambda mu, sigma: {"mu": mu * np.nan, "sigma": sigma}, "NaN or infinity"),
        (lambda mu, sigma: {"mu": mu, "sigma": np.tril(sigma)}, "not symmetric"),
        (lambda mu, sigma: {"mu": mu, "sigma": -sigma}, "negative variance"),
        (lambda mu, sigma: {"mu": mu[:5], "sigma": sigma[:5, :5]}, "5 pooled features, pixels gives 6"),
        (lambda mu, sigma: {"features": np.tile(mu, (50, 1))}, "no array 'arr_0' but features"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, samples, real, change, message):
    """What is not clear, not finite, no covariance or of another network: named, with what to do."""
    path = stored(tmp_path, **change(real["mu"], real["sigma"]))
    with pytest.raises(DataError, match=message):
        scored(scorer(tmp_path), path, samples)


def mixed_sizes(folder):
    """Real images of two classes, of many sizes and kinds."""
    for number in range(8):
        image = pictures(1, height=20 + 3 * number, width=40 - 2 * number, seed=number)[0]
        suffix = (".png", ".jpg", ".bmp")[number % 3]
        save(folder / "ab"[number % 2] / f"{number}{suffix}", image[..., :1] if number == 3 else image)
    return folder


def prepare(source, folder, side, held_out):
    request = PreparationRequest(
        source=source, folder=folder, image_size=side, selection=Selection(held_out=held_out)
    )
    preparing.prepare(request, lambda done, total, note: None)
    return folder


def test_raw_images_of_mixed_sizes_are_those_of_a_prepared_set(tmp_path):
    """--image-size reads files as `data prepare` does: the same pixels, labels and names."""
    raw = mixed_sizes(tmp_path / "raw")
    found = open_images(raw, allow_jpeg=True, image_size=16)
    ready = open_images(prepare(raw, tmp_path / "set", 16, "0"))
    images = [torch.cat([batch for batch, _ in each.batches()]) for each in (found, ready)]
    assert images[0].shape == (8, 16, 16, 3)
    assert torch.equal(*images)
    assert (found.labels.tolist(), found.class_names) == (ready.labels.tolist(), ("a", "b"))
    assert ready.class_names == ("a", "b")
    assert any("cut and resized to 16 px" in text for text in found.warnings)


def test_parts_of_a_prepared_set_are_named_by_their_folders(tmp_path):
    """The set itself is its training part; FOLDER/held-out is the other."""
    folder = prepare(mixed_sizes(tmp_path / "raw"), tmp_path / "set", 16, "0.25")
    sizes = {name: len(open_images(path)) for name, path in (
        ("whole", folder), ("train", folder / "train"), ("held-out", folder / "held-out")
    )}  # fmt: skip
    assert sizes == {"whole": 6, "train": 6, "held-out": 2}
    assert open_images(folder / "held-out").name == f"{folder} (held-out)"


def test_mixed_sizes_say_what_to_do(tmp_path):
    """Without the option the error names it."""
    for side in (16, 20):
        save(tmp_path / "raw" / f"{side}.png", pictures(1, height=side, width=side)[0])
    with pytest.raises(DataError, match="--image-size SIDE"):
        open_images(tmp_path / "raw", allow_jpeg=True)


def test_a_file_that_is_no_image_is_named(tmp_path):
    """With --image-size too."""
    raw = mixed_sizes(tmp_path / "raw")
    (raw / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png cannot be used: not an image"):
        open_images(raw, allow_jpeg=True, image_size=16)


def test_what_is_cut_already_is_not_cut_again(tmp_path):
    """An npz and a prepared set of another size are refused."""
    np.savez(tmp_path / "a.npz", arr_0=pictures(3, height=8, width=8))
    with pytest.raises(DataError, match="8 x 8 pixels that are cut already, --image-size is 16"):
        open_images(tmp_path / "a.npz", image_size=16)
    assert len(open_images(tmp_path / "a.npz", image_size=8)) == 3


def test_the_command_takes_every_kind(tmp_path):
    """Raw images, a prepared set, and statistics alone, from the command line."""
    raw = mixed_sizes(tmp_path / "raw")
    prepare(raw, tmp_path / "set", 16, "0")
    np.savez(tmp_path / "samples.npz", arr_0=pictures(6, height=16, width=16, seed=5))
    common = ("--device", "cpu", "-q", "--metrics", "fd")

    def run(*words):
        done = attnbench_here(*words, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done

    built = run(
        "reference", "build", "raw", "--to", "real.npz", "--image-size", "16", "--device", "cpu", "-q"
    )
    assert built.returncode == 0, built.stderr
    values = set()
    for words in (("raw", "--image-size", "16"), ("set",), ("real.npz",), ("stats.npz",)):
        if words == ("stats.npz",):
            with np.load(tmp_path / "real.npz") as arrays:
                np.savez(tmp_path / "stats.npz", mu=arrays["mu"], sigma=arrays["sigma"])
        done = run("evaluate", "samples.npz", "--reference", *words, *common)
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if "FD-efflite0 ↓" in line)
        values.add(line)
    assert len(values) == 1
    for words, message in (
        (("real.npz", "--image-size", "16"), "--image-size cuts image files"),
        (("stats.npz", "--nearest", "near.png"), "name the images with --training"),
        (("stats.npz", "--per-class", "classes.png"), "stats.npz has no labels"),
    ):
        done = run("evaluate", "samples.npz", "--reference", *words, *common)
        assert done.returncode == 2
        assert message in done.stderr
