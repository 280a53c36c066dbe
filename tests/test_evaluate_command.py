"""`attnbench evaluate` and `attnbench reference build` as a user calls them, on real files and networks."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import attnbench, attnbench_here
from PIL import Image
from skimage import data as photographs

from attnbench.errors import UserInputError
from attnbench.evaluation.figures import shown_classes
from attnbench.specs import EvaluateSpec

PHOTOS = ("coffee", "cat", "rocket")
SCORE = ("evaluate", "samples", "--reference", "real")
SMALL = ("--kd-subset-size", "20", "--kd-subsets", "5", "--device", "cpu", "--quiet")


def patches(name, count, seed, noise=0):
    """Random 32-pixel patches of a photograph, uint8 [count, 32, 32, 3]."""
    photo, generator = getattr(photographs, name)(), np.random.default_rng(seed)
    rows = generator.integers(0, photo.shape[0] - 32, count)
    columns = generator.integers(0, photo.shape[1] - 32, count)
    found = np.stack([photo[r : r + 32, c : c + 32] for r, c in zip(rows, columns, strict=True)])
    shift = generator.integers(-noise, noise + 1, found.shape)
    return np.clip(found.astype(int) + shift, 0, 255).astype(np.uint8)


def write_classes(folder, count, seed, noise=0):
    for name in PHOTOS:
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(patches(name, count, seed, noise)):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with real images, samples as PNG and as npz, and a warm feature cache."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_classes(folder / "real", 16, seed=0)
    write_classes(folder / "samples", 12, seed=1, noise=25)
    images = np.concatenate([patches(name, 12, 1, 25) for name in PHOTOS])
    np.savez(folder / "samples.npz", arr_0=images, arr_1=np.repeat(np.arange(3), 12))
    np.savez(folder / "plain.npz", arr_0=images)
    return folder


def values(path):
    scored = json.loads(path.read_text())["scored"]
    return {m["name"]: m["values"][0] for m in next(iter(scored.values()))}


def test_png_npz_and_a_reference_file_give_the_same_numbers(place):
    """One set of samples as PNG or npz, against images or the file built of them: equal to the last bit."""
    built = attnbench("reference", "build", "real", "--to", "real.npz", "--device", "cpu", "-q", cwd=place)
    assert built.returncode == 0, built.stderr
    assert "48 images of real" in built.stdout
    found = []
    for samples, reference in (("samples", "real"), ("samples.npz", "real.npz")):
        done = attnbench_here(
            "evaluate", samples, "--reference", reference, "--json", "out.json", *SMALL, cwd=place
        )
        assert done.returncode == 0, done.stderr
        found.append(values(place / "out.json"))
    classes_first = dict(found[0])
    assert classes_first.keys() == found[1].keys()
    # the same images in another order sit in other batches: features agree to the rounding of float32
    for name, value in classes_first.items():
        assert found[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert {"FD-efflite0", "sFD-efflite0", "sKD-efflite0", "IS-efflite0", "P-efflite0"} <= set(found[0])


def test_the_table_says_what_a_reader_must_know(place):
    """Name with suffix, n, interval, reference and the warning about few images are on the screen."""
    done = attnbench_here("evaluate", "samples", "--reference", "real", "--metrics", "fd", *SMALL, cwd=place)
    for part in (
        "FD-efflite0 ↓",
        "n = 36",
        "±",
        "48 images",
        "biased upwards below 10,000",
        "no published number",
    ):
        assert part in done.stdout


def test_other_sets_stand_in_the_same_table(place):
    """--also scores held-out images beside the samples: a floor."""
    done = attnbench_here(
        "evaluate", "samples", "--reference", "real", "--also", "real", "--metrics", "fd,precision",
        "--json", "also.json", *SMALL, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scored = json.loads((place / "also.json").read_text())["scored"]
    assert list(scored) == ["samples", "real"]
    floor = {m["name"]: m["values"][0] for m in scored["real"]}
    assert floor["P-efflite0"] == 1.0
    assert floor["FD-efflite0"] < 1e-3  # the same images: zero but for rounding
    copies = [w for w in json.loads((place / "also.json").read_text())["warnings"] if "pixel by pixel" in w]
    assert len(copies) == 1
    assert copies[0].startswith("48 of the 48 images of real are images of the reference real")


def test_pictures(place):
    """Scores by class, nearest training images and t-SNE are written whole, and copies are found."""
    with_copy = place / "copied"
    shutil.copytree(place / "samples", with_copy)
    shutil.copy(place / "real" / "cat" / "3.png", with_copy / "cat" / "0.png")
    done = attnbench_here(
        "evaluate", "copied", "--reference", "real", "--metrics", "fd", "--per-class", "classes.png",
        "--nearest", "near.png", "--tsne", "tsne.png", "--classes", "coffee,cat", *SMALL, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("classes.png", "near.png", "tsne.png"):
        with Image.open(place / name) as picture:
            assert min(picture.size) > 200
    assert (place / "classes.csv").read_text().count("\n") == 1 + len(PHOTOS)
    assert "1 samples are copies, pixel by pixel" in done.stdout
    assert "was not measured: memorisation: 48 real images have no closest 1%" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate",), "needs SAMPLES and --reference"),
        (("evaluate", "nowhere", "--reference", "real"), "nowhere does not exist"),
        ((*SCORE, "--extractor", "inceptoin-tf"), "did you mean 'inception-tf'"),
        ((*SCORE, "--metrics", "fid"), "did you mean 'fd'"),
        ((*SCORE, "--protocol", "other"), "--protocol"),
        (SCORE, "kd_subset_size is 1000, but there are 36 samples"),
        ((*SCORE, "--json", "no/x.json"), "no does not exist; create it"),
        ((*SCORE, "--case", "x"), "no folder of a suite's run"),
        ((*SCORE, "--extractor", "dinov2", "--metrics", "fd"), "DINOV2_WEIGHTS"),
        (("evaluate", "--self-test", "--golden", "real"), "VIRTUAL_imagenet256_labeled.npz"),
        (("reference", "build", "real", "--to", "real.txt"), "--to real.npz"),
        (("reference", "build", "samples.npz", "--to", "samples.npz"), "holds the images themselves"),
        ((*SCORE, "--json", "real"), "real is a folder; name a file in it"),
        ((*SCORE, "--also", "samples"), "this set is named already"),
        (("evaluate", "samples"), "name a folder or file with --reference"),
        ((*SCORE, "--extractor", "inception-tf", "--metrics", "fd"), "name the file with --weights"),
        ((*SCORE, "--extractor", "digits-cnn", "--metrics", "fd"), "attnbench evaluate RUN --case LABEL"),
        ((*SCORE, "--training", "real"), "give --nearest, or neither"),
        ((*SCORE, "--classes", "random:3"), "give --tsne, or neither"),
        ((*SCORE, "--also", ":x"), "names nothing; give a folder"),
        (("evaluate", "x" * 300, "--reference", "real"), "File name too long; name another path"),
        ((*SCORE, "--kd-subset-size", "20", "--weights", "some.pth"), "takes no file, got some.pth"),
        ((*SCORE, "--extractor", "digits-cnn", "--metrics", "fd"), "choose another with --extractor"),
        (
            ("evaluate", "samples", "--reference", "plain.npz", "--metrics", "fd", "--per-class", "x"),
            "plain.npz has no labels",
        ),
        (("evaluate", "--self-test", "--extractor", "inceptoin"), "unknown extractor 'inceptoin'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_sentence(place, words, message):
    """What, got, allowed, next step; exit code 2; no traceback."""
    done = attnbench_here(*words, "-q", "--device", "cpu", cwd=place)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_classes_are_compared_by_name(place):
    """Samples of two of three classes are scored against the reference's classes of the same names."""
    for kept in (("coffee", "rocket"), ("rocket", "moon")):
        folder = place / "-".join(kept)
        for name in kept:
            shutil.copytree(place / "samples" / ("cat" if name == "moon" else name), folder / name)
    wanted = ("--reference", "real", "--metrics", "fd", "--per-class", "by-name.png", *SMALL)
    done = attnbench_here("evaluate", "coffee-rocket", *wanted, cwd=place)
    assert done.returncode == 0, done.stderr
    lines = [line.split(",") for line in (place / "by-name.csv").read_text().splitlines()[1:]]
    assert [line[:4] for line in lines] == [
        ["0", "cat", "0", "16"], ["1", "coffee", "12", "16"], ["2", "rocket", "12", "16"]
    ]  # fmt: skip
    done = attnbench_here("evaluate", "rocket-moon", *wanted, cwd=place)
    assert done.returncode == 2
    assert "rocket-moon shows classes that real has not: moon" in done.stderr


def test_a_reference_file_keeps_what_it_keeps(place):
    """Another number of reference images than those in the file is refused, not silently ignored."""
    built = attnbench_here(
        "reference", "build", "real", "--to", "few.npz", "--reference-images", "20", "-q", "--device", "cpu",
        cwd=place,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    wanted = ("evaluate", "samples", "--reference", "few.npz", "--metrics", "kd", "--reference-images")
    assert attnbench_here(*wanted, "20", *SMALL, cwd=place).returncode == 0
    done = attnbench_here(*wanted, "30", *SMALL, cwd=place)
    assert done.returncode == 2
    assert "keeps 20 images, 30 are asked for" in done.stderr


def test_the_kernel_distance_stands_with_its_spread(place):
    """Mean and standard deviation over the subsets are both on the screen."""
    words = ("evaluate", "samples", "--reference", "real", "--metrics", "kd", "--json", "kd.json")
    done = attnbench_here(*words, *SMALL, cwd=place)
    found = {m["name"]: m for m in json.loads((place / "kd.json").read_text())["scored"]["samples"]}
    low, high = found["KD-efflite0"]["interval"]
    half = (high - low) / 2
    decimals = 1 - math.floor(math.log10(half))
    spread = found["KD-efflite0 std"]["values"][0]
    assert f"± {half:.{decimals}f}, std {spread:.{decimals}f}" in done.stdout
    assert f" {found['KD-efflite0']['values'][0]:.{decimals}f} " in done.stdout


def test_two_sets_of_one_name_both_stand_in_the_table(place, monkeypatch):
    """Cases of one label in two runs: the second goes by its path, and neither is lost."""
    from dataclasses import replace

    from attnbench.commands import evaluate_inputs

    opened = evaluate_inputs.open_images
    monkeypatch.setattr(
        evaluate_inputs, "open_images", lambda *a, **k: replace(opened(*a, **k), name="softmax")
    )
    request = evaluate_inputs.EvaluationRequest(
        samples=place / "samples",
        reference=place / "real",
        settings=EvaluateSpec(),
        also=(str(place / "real"),),
    )
    sets = evaluate_inputs.open_sets(request, place / "runs")
    assert [images.name for images in sets] == ["softmax", str(place / "real")]


def test_a_reference_of_another_size_is_refused(place):
    """Images of another resolution do not compare."""
    (place / "large").mkdir()
    for number in range(4):
        image = photographs.coffee()[number * 8 : number * 8 + 64, :64]
        Image.fromarray(image).save(place / "large" / f"{number}.png")
    done = attnbench_here("evaluate", "samples", "--reference", "large", "--metrics", "fd", *SMALL, cwd=place)
    assert done.returncode == 2
    assert "height 64, the samples have 32" in done.stderr


def test_adms_batch_with_another_network_says_what_is_not_used(place):
    """Statistics of Inception are of no use to another network: the reference is the batch's images."""
    images = np.concatenate([patches(name, 16, 0) for name in PHOTOS])
    statistics = {
        "mu": np.zeros(2048),
        "sigma": np.eye(2048),
        "mu_s": np.zeros(2023),
        "sigma_s": np.eye(2023),
    }
    np.savez(place / "VIRTUAL.npz", arr_0=images, **statistics)
    done = attnbench_here(
        "evaluate", "samples", "--reference", "VIRTUAL.npz", "--metrics", "fd", *SMALL, cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert "statistics of Inception features" in done.stdout


def test_self_test_proves_and_disproves(monkeypatch):
    """Every comparison agrees; a metric that is off by a thousandth is found, and the exit code says so."""
    from attnbench.evaluation import self_test

    proofs = list(self_test.prove_maths())
    assert {proof.status for proof in proofs} == {"ok"}
    assert len(proofs) == 30  # 5 metrics on 5 pairs of sets, 3 of torch-fidelity, 2 of prdc
    right = self_test.frechet_distance
    monkeypatch.setattr(self_test, "frechet_distance", lambda a, b: 1.001 * right(a, b))
    wrong = [proof.what for proof in self_test.prove_maths() if proof.status == "failed"]
    assert len(wrong) == 6
    assert all("Frechet" in what for what in wrong)


def test_the_golden_numbers_are_those_of_adms_settings(place, tmp_path, monkeypatch):
    """Whatever metrics and settings a user names, the proof has ADM's; a wrong number fails it."""
    from types import SimpleNamespace

    from attnbench.evaluation import self_test

    for name in (self_test.ADM_REFERENCE, self_test.ADM_SAMPLES):
        shutil.copy(place / "samples.npz", tmp_path / name)
    made = []

    def make(settings):
        made.append(settings)
        found = [SimpleNamespace(name=name, value=value) for name, (value, _) in self_test.GOLDEN.items()]
        found[0].value += 0.1
        return SimpleNamespace(open_reference=lambda path: path, measure=lambda reference, images: found)

    asked = EvaluateSpec(metrics=["kd"], neighbours=9, reference_images=5, weights=place / "w.pth")
    proofs = list(self_test.prove_golden(make, asked, tmp_path))
    assert [proof.status for proof in proofs] == ["failed", "ok", "ok", "ok", "ok"]
    (used,) = made
    assert (used.neighbours, used.reference_images, used.is_order) == (3, 10_000, "given")
    assert set(used.metrics) == {"fd", "sfd", "is", "precision", "recall"}
    assert used.weights == place / "w.pth"


def test_self_test_of_the_network_sees_a_wrong_resize(monkeypatch, tmp_path):
    """Features of EfficientNet-Lite0 agree with the stored ones, and not without antialias."""
    from attnbench.evaluation.scorer import make_scorer
    from attnbench.evaluation.self_test import prove_network
    from attnbench.metrics import efficientnet_lite0

    def make(settings):
        return make_scorer(settings, tmp_path, torch.device("cpu"))

    assert {proof.status for proof in prove_network(make, EvaluateSpec())} == {"ok"}
    scaled = efficientnet_lite0.scaled_input
    monkeypatch.setattr(efficientnet_lite0, "scaled_input", lambda *images: scaled(*images).roll(1, -1))
    assert {proof.status for proof in prove_network(make, EvaluateSpec())} == {"failed"}
    for other in ({"extractor": "inception-tf"}, {"protocol": "clean"}):
        assert [p.status for p in prove_network(make, EvaluateSpec(**other))] == ["not run"]


# ---- cases of a run


def test_the_self_test_shows_what_may_differ():
    """Every comparison stands with its difference and the limit; the network's limit is on the screen."""
    from attnbench.console import self_test_listing
    from attnbench.evaluation.self_test import Proof

    network = Proof(level="network", what="features", ours=2.5e-4, theirs=0.0, tolerance=1e-3)
    absent = Proof(level="golden", what="samples", reason="give --golden FOLDER")
    table = self_test_listing([network, absent])
    cells = {c.title: cell.text for c, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert (cells["status"], cells["difference"], cells["allowed"]) == ("ok", "2.5e-04", "1.0e-03")
    assert "not run: golden: samples: give --golden FOLDER" in table.notes
    assert table.notes[-1] == "1 ok, 0 failed, 1 not run; levels that ran: network"


def test_a_picture_that_cannot_be_drawn_costs_no_score(place, monkeypatch):
    """The scores are printed and written; what failed is said by its option, and the exit code tells."""

    def broken(*_):
        raise ValueError("no font")

    monkeypatch.setattr("attnbench.commands.evaluate.draw_tsne", broken)
    words = ["--tsne", "no.png", "--metrics", "fd", "--json", "kept.json"]
    done = attnbench_here(*SCORE, *words, *SMALL, cwd=place)
    assert done.returncode == 1
    assert "FD-efflite0" in done.stdout
    assert "error: --tsne: not drawn (ValueError: no font)" in done.stderr
    assert values(place / "kept.json")


def test_few_classes_are_all_shown_where_nobody_chooses():
    """Five close classes are the default; of three images' classes it is these three."""
    labels = torch.arange(3).repeat_interleave(4)
    features = SimpleNamespace(pooled=torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    real = SimpleNamespace(name="real", labels=labels, features=features, class_names=PHOTOS)
    assert shown_classes(real, None) == [0, 1, 2]
    with pytest.raises(UserInputError, match=r"--classes close:4: .*choose 2 \.\.\. 3"):
        shown_classes(real, "close:4")


@pytest.mark.parametrize("option", ["--json", "--per-class", "--nearest", "--tsne"])
def test_a_file_that_cannot_be_written_is_found_first(place, monkeypatch, option):
    """By the option's name, before an image is looked at."""
    monkeypatch.setattr("attnbench.commands.evaluate.open_sets", None)
    done = attnbench_here(*SCORE, option, "nowhere/x.png", *SMALL, cwd=place)
    assert done.returncode == 2
    assert f"error: {option}: the folder {place / 'nowhere'} does not exist" in done.stderr
