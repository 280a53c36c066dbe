"""The evaluate stage: names, floors, caches, and settings that do not fit the data."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import class_files, write_files
from stage_cases import make_case, make_workspace
from test_stages_prepare import save_codec

from attnbench.contract import FeatureExtractor, Features
from attnbench.data import load_dataset
from attnbench.data.arrays import ArrayImages
from attnbench.errors import DataError, UnknownNameError, UnsupportedError, UserInputError
from attnbench.evaluation.class_choice import choose_classes
from attnbench.evaluation.separability import separability
from attnbench.metrics import classifier
from attnbench.metrics.classifier import LabelledImages
from attnbench.metrics.gaussian import frechet_distance, statistics
from attnbench.plugins import Provided
from attnbench.specs import CodecSpec, DigitsData, EvaluateSpec, ImageFolderData
from attnbench.stages import evaluate, scored_images
from attnbench.stages.latents.codec import load_codec
from attnbench.storage.store import StageOutput, read_output, write_output

SETTINGS = {"extractor": "pixels", "kd_subsets": 4, "kd_subset_size": 20, "neighbours": 3}


class PixelFeatures:
    """Features without a network: 64 pixel values, 10 of them as logits, 32 as maps. Counts its images."""

    def __init__(self, with_logits=True):
        self.seen, self.with_logits = 0, with_logits

    def load(self, inputs):
        return self

    def __call__(self, images):
        self.seen += len(images)
        pooled = images.flatten(1).float() / 255
        logits = 10 * pooled[:, 20:30] if self.with_logits else None
        return Features(pooled=pooled, logits=logits, spatial=pooled[:, 16:48])


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DigitsData())


@pytest.fixture
def pixels(monkeypatch):
    """Provide the extractor `pixels`, and a classifier that is not trained."""
    found = PixelFeatures()
    record = FeatureExtractor(name="pixels", suffix="px", summary="", source="", load=found.load)
    provided = SimpleNamespace(
        extractors={"pixels": Provided(record=record, plugin="test", origin="1")}, extractor=_lookup(record)
    )
    monkeypatch.setattr(scored_images, "registry", lambda: provided)
    monkeypatch.setattr(classifier, "_train", lambda *args: None)
    return found


def _lookup(record):
    def extractor(name):
        if name != record.name:
            raise UnknownNameError("extractor", name, [record.name])
        return record

    return extractor


def case_with_samples(workspace, images, labels, *, shards=2, seed=0, **settings):
    """Return a case whose sample stage has left these images."""
    case = make_case(seed=seed).model_copy(update={"evaluate": EvaluateSpec(**SETTINGS | settings)})
    folder = workspace.folder("sample", case)
    for number, indices in enumerate(torch.arange(len(images)).chunk(shards)):
        np.savez(
            folder / f"samples-{number:05d}.npz",
            arr_0=images[indices].numpy(),
            labels=labels[indices].numpy(),
        )
    write_output(folder, StageOutput())
    return case


def noisy(digits, count=60, seed=0):
    """Real digits with some noise: samples of a middling model."""
    images = digits.train.images[:count].int()
    noise = torch.randint(-40, 41, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + noise).clamp(0, 255).to(torch.uint8), digits.train.labels[:count]


def by_name(output):
    return {m.name: m for m in output.measurements}


def test_measurements_and_their_names(digits, pixels, tmp_path):
    """Every metric and its floor carry the extractor's suffix; accuracy of samples and real images follow."""
    workspace = make_workspace(tmp_path)
    found = by_name(evaluate.run(case_with_samples(workspace, *noisy(digits)), workspace))
    metrics = ["FD-px", "sFD-px", "KD-px", "KD-px std", "sKD-px", "sKD-px std", "IS-px", "P-px", "R-px"]
    assert list(found) == [
        *metrics,
        *(f"floor:{name}" for name in metrics),
        "knn_accuracy-px",
        "silhouette-px",
        "class_accuracy",
        "class_accuracy_real",
    ]
    assert {found[name].n for name in metrics} == {60}
    better = ["lower", "lower", "lower", "none", "lower", "none", "higher", "higher", "higher"]
    assert [found[name].better for name in metrics] == better
    assert {found[f"floor:{name}"].better for name in metrics} == {"none"}
    assert found["floor:FD-px"].n == found["class_accuracy_real"].n == len(digits.held_out)
    assert "biased" in found["FD-px"].note


def test_values_are_those_of_the_images(digits, pixels, tmp_path):
    """The distance is the one between samples in all shards and the training images; so is the floor."""
    workspace = make_workspace(tmp_path)
    images, labels = noisy(digits)
    found = by_name(evaluate.run(case_with_samples(workspace, images, labels, shards=3), workspace))
    train, held_out, fake = (
        statistics(x.flatten(1).float() / 255) for x in (digits.train.images, digits.held_out.images, images)
    )
    # everything after the features is float64; of 64 eigenvalues each is known to eps, its root to eps^1/2
    rounding = 64 * 1.5e-8
    assert found["FD-px"].value == pytest.approx(frechet_distance(train, fake), abs=rounding)
    assert found["floor:FD-px"].value == pytest.approx(frechet_distance(train, held_out), abs=rounding)


SEPARATION = ("knn_accuracy-px", "silhouette-px")


def test_similar_classes_of_worse_samples_separate_less(digits, pixels, tmp_path):
    """The closest classes of the real images, 20 samples of each; nothing goes through the network twice."""
    workspace, found = make_workspace(tmp_path), {}
    images, labels = digits.train.images[:230], digits.train.labels[:230]
    noise = torch.randint(-250, 251, images.shape, generator=torch.Generator().manual_seed(0))
    spoilt = (images.int() + noise).clamp(0, 255).to(torch.uint8)
    for seed, drawn in enumerate((images, spoilt)):
        case = case_with_samples(workspace, drawn, labels, seed=seed, class_accuracy=False)
        found[seed] = by_name(evaluate.run(case, workspace))
    assert pixels.seen == len(digits.train) + len(digits.held_out) + 2 * 230
    for name in SEPARATION:
        good, bad = found[0][name], found[1][name]
        assert good.value > bad.value + 0.1
        assert (good.better, good.note, bad.note) == ("higher", bad.note, good.note)
        assert found[0][f"floor:{name}"].value == found[1][f"floor:{name}"].value > bad.value + 0.1
        assert found[0][f"floor:{name}"].better == "none"
    train = digits.train.images.flatten(1).float() / 255
    classes = choose_classes(digits.train.labels, train, 5, "close", num_classes=10)
    each = min(int((labels == c).sum()) for c in classes)
    rows = torch.cat([(labels == c).nonzero().flatten()[:each] for c in classes])
    alone = separability(images[rows].flatten(1).float() / 255, labels[rows], neighbours=10)
    assert [found[0][name].value for name in SEPARATION] == [alone.accuracy, alone.silhouette]
    assert found[0][SEPARATION[0]].n == 5 * each
    assert f"{each} of each, 10 neighbours, chance 0.2" in found[0][SEPARATION[0]].note
    assert ", ".join(digits.class_names[c] for c in classes) in found[0][SEPARATION[1]].note


def test_too_few_samples_of_a_class_are_said(digits, pixels, tmp_path):
    """Six of each class tell nothing: no value, the reason, and no floor beside it."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, *noisy(digits), class_accuracy=False)
    found = by_name(evaluate.run(case, workspace))
    assert {(tuple(found[name].values), found[name].better) for name in SEPARATION} == {((), "higher")}
    assert "not measured: fewer than 10 samples of one of " in found[SEPARATION[0]].note
    assert not any(f"floor:{name}" in found for name in SEPARATION)


def test_without_held_out_images_real_ones_stand_in_the_note(digits, pixels, monkeypatch, tmp_path):
    """The reference itself shows what is within reach; data of one class have nothing to separate."""
    workspace = make_workspace(tmp_path)
    images, labels = digits.train.images[:400], digits.train.labels[:400]
    nothing = ArrayImages(images[:0], labels[:0])
    monkeypatch.setattr(evaluate, "dataset_of", lambda *_: replace(digits, held_out=nothing))
    case = case_with_samples(workspace, images, labels, class_accuracy=False)
    found = by_name(evaluate.run(case, workspace))
    assert re.search(r"; of \d+ real images each 0\.\d{3}$", found[SEPARATION[0]].note)
    assert not any(name.startswith("floor:") for name in found)
    alone = replace(digits, train=ArrayImages(digits.train.images, torch.zeros_like(digits.train.labels)))
    monkeypatch.setattr(evaluate, "dataset_of", lambda *_: alone)
    case = case_with_samples(workspace, images, 0 * labels, seed=1, class_accuracy=False)
    found = by_name(evaluate.run(case, workspace))
    assert [found[name].values for name in SEPARATION] == [[], []]
    assert found[SEPARATION[0]].note == "not measured: the real images are of one class"


def test_the_held_out_part_can_be_the_reference(digits, pixels, tmp_path):
    """With reference held-out the training part is the floor, at its own number of images."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, *noisy(digits), reference="held-out", class_accuracy=False)
    found = by_name(evaluate.run(case, workspace))
    assert found["floor:FD-px"].n == len(digits.train)
    assert f"{len(digits.held_out)} real" in found["FD-px"].note
    assert "class_accuracy" not in found


def test_training_images_as_samples_are_perfect(digits, pixels, tmp_path):
    """Samples that are the training images have distance 0 and precision and recall 1."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, digits.train.images, digits.train.labels)
    found = by_name(evaluate.run(case, workspace))
    # 64 features, each eigenvalue of the product known to eps: its root to 1.5e-8 of the spread
    assert found["FD-px"].value < 64 * 1.5e-8 * 10
    assert found["P-px"].value == found["R-px"].value == 1.0


def test_real_images_are_looked_at_once(digits, pixels, tmp_path):
    """A second case on the same data extracts its samples only, and reports the same floors."""
    workspace = make_workspace(tmp_path)
    first = evaluate.run(case_with_samples(workspace, *noisy(digits)), workspace)
    seen = pixels.seen
    other = evaluate.run(case_with_samples(workspace, *noisy(digits, seed=1), seed=1), workspace)
    assert pixels.seen - seen == 60
    floors = [[m for m in output.measurements if m.name.startswith("floor:")] for output in (first, other)]
    assert floors[0] == floors[1] != []
    assert first.measurements != other.measurements


def test_pairs_of_real_images_are_found_once(digits, pixels, tmp_path):
    """Cases of one dataset share the pairs within the reference: the second one finds no new ones."""
    workspace = make_workspace(tmp_path)
    evaluate.run(case_with_samples(workspace, *noisy(digits)), workspace)
    kept = sorted(tmp_path.rglob("pairs-*"))
    evaluate.run(case_with_samples(workspace, *noisy(digits, seed=1), seed=1), workspace)
    assert kept  # of the samples, of the held-out images, and of the maps
    assert sorted(tmp_path.rglob("pairs-*")) == kept


def test_equal_images_are_looked_at_once(digits, pixels, tmp_path):
    """Samples that another case has drawn, too, are known by their content; their order changes nothing."""
    workspace = make_workspace(tmp_path)
    images, labels = noisy(digits)
    first = evaluate.run(case_with_samples(workspace, images, labels), workspace)
    seen = pixels.seen
    assert evaluate.run(case_with_samples(workspace, images, labels, seed=1), workspace) == first
    assert pixels.seen == seen
    turned = case_with_samples(workspace, images.flip(0), labels.flip(0), seed=2)
    assert evaluate.run(turned, workspace).measurements == first.measurements


def test_a_finished_stage_is_not_run_again(digits, pixels, tmp_path):
    """Running the stage again reads what it left."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, *noisy(digits))
    output = evaluate.run(case, workspace)
    seen = pixels.seen
    assert evaluate.run(case, workspace) == output == read_output(workspace.folder("evaluate", case))
    assert pixels.seen == seen


def test_class_accuracy_is_the_classifiers(digits, monkeypatch, pixels, tmp_path):
    """A classifier that always says 3 is right on the part of the samples that should be a 3."""
    monkeypatch.setattr(
        classifier.Classifier, "correct", lambda self, images, labels: int((labels == 3).sum())
    )
    workspace = make_workspace(tmp_path)
    images, labels = noisy(digits)
    found = by_name(evaluate.run(case_with_samples(workspace, images, labels), workspace))
    assert found["class_accuracy"].value == float((labels == 3).double().mean())
    assert found["class_accuracy_real"].value == float((digits.held_out.labels == 3).double().mean())


@pytest.fixture
def loads(monkeypatch):
    """Count how often a shard of samples or of real images is decoded."""
    counted = Counter()

    def counting(collection, what):
        def load(shard):
            counted[what] += 1
            return shard.load()

        shards = [replace(s, load=partial(load, s), load_rows=None) for s in collection.shards]
        return replace(collection, shards=tuple(shards))

    opened, real = evaluate.sampled_images, evaluate.dataset_images
    monkeypatch.setattr(evaluate, "sampled_images", lambda *args: counting(opened(*args), "samples"))
    monkeypatch.setattr(evaluate, "dataset_images", lambda data, part: counting(real(data, part), part))
    return counted


def test_features_and_accuracy_come_of_one_reading(digits, loads, pixels, tmp_path):
    """Each shard is decoded once, though the scorer and the classifier both look at it."""
    workspace = make_workspace(tmp_path)
    images, labels = noisy(digits)
    found = by_name(evaluate.run(case_with_samples(workspace, images, labels, shards=3), workspace))
    assert loads == {"samples": 3, "train": 2, "held-out": 1}
    judge = evaluate.load_or_train_classifier(
        LabelledImages(images=digits.train.images, labels=digits.train.labels, num_classes=10),
        tmp_path / "features",
        seed=evaluate.SEED,
        device=torch.device("cpu"),
    )
    assert found["class_accuracy"].value == judge.accuracy(images, labels)
    assert found["class_accuracy_real"].value == judge.accuracy(
        digits.held_out.images, digits.held_out.labels
    )
    # the features of the same samples are known, the accuracy of another case's is not
    loads.clear()
    again = by_name(evaluate.run(case_with_samples(workspace, images, labels, shards=3, seed=1), workspace))
    assert again == found
    assert loads == {"samples": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kd_subset_size": 61}, r"kd_subset_size is 61, but there are 60 samples.*2 \.\.\. 60"),
        ({"neighbours": 60}, r"neighbours is 60, but there are 60 samples.*1 \.\.\. 59"),
    ],
)
def test_settings_that_do_not_fit(digits, pixels, tmp_path, settings, message):
    """More images than there are is an error with what is allowed, before any feature is computed."""
    workspace = make_workspace(tmp_path)
    with pytest.raises(UserInputError, match=message):
        evaluate.run(case_with_samples(workspace, *noisy(digits), **settings), workspace)
    assert pixels.seen == 0


def test_unused_settings_need_not_fit(digits, pixels, tmp_path):
    """The default subset size of 1000 does not matter where no kernel distance is asked for."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, *noisy(digits), metrics=["fd"], kd_subset_size=1000)
    assert "FD-px" in by_name(evaluate.run(case, workspace))


def test_an_inception_score_needs_logits(digits, pixels, tmp_path):
    """An extractor without logits makes `is` unsupported, and the error says what to change."""
    pixels.with_logits = False
    workspace = make_workspace(tmp_path)
    with pytest.raises(UnsupportedError, match="remove `is` from the metrics"):
        evaluate.run(case_with_samples(workspace, *noisy(digits), metrics=["is"]), workspace)


def test_missing_samples(pixels, tmp_path):
    """Without samples the stage says which stage to run."""
    case = make_case().model_copy(update={"evaluate": EvaluateSpec(**SETTINGS)})
    with pytest.raises(UserInputError, match="run the stage `sample`"):
        evaluate.run(case, make_workspace(tmp_path))


def test_reconstructions_come_in_shards(monkeypatch, tmp_path):
    """Evenly spaced real images through the autoencoder, a shard in memory at a time, keys of their own."""
    monkeypatch.setattr(evaluate, "SHARD_SIZE", 3)
    save_codec(tmp_path / "vae")
    spec = CodecSpec(path=tmp_path / "vae")
    data = ImageFolderData(path=write_files(tmp_path / "real", class_files()), image_size=8, codec=spec)
    case, workspace = make_case().model_copy(update={"data": data}), make_workspace(tmp_path)
    dataset = load_dataset(data)
    stage = evaluate.Evaluation(case=case, workspace=workspace, dataset=dataset, samples=None)
    found = stage._reconstructions(spec, 7)
    assert [shard.count for shard in found.shards] == [3, 3, 1]
    assert len({shard.key for shard in found.shards}) == 3
    chosen = torch.linspace(0, len(dataset.train) - 1, 7).round().long()
    real = dataset.train.get(chosen)
    codec = load_codec(spec, torch.device("cpu"))
    expected = torch.cat([codec.reconstruct(image[None]) for image in real])
    images = torch.cat([shard.load() for shard in found.shards])
    # rounding to whole grey values may go either way where batches sum in another order
    assert int((images.int() - expected.int()).abs().max()) <= 1
    assert int((found.image(5).int() - expected[5].int()).abs().max()) <= 1


def test_a_damaged_shard_is_named(digits, pixels, tmp_path):
    """A shard cut in half is an error with its path."""
    workspace = make_workspace(tmp_path)
    case = case_with_samples(workspace, *noisy(digits))
    path = workspace.folder("sample", case) / "samples-00001.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"samples-00001\.npz"):
        evaluate.run(case, workspace)


def test_progress_covers_all_images(digits, pixels, tmp_path):
    """Of every set of images progress never goes back and ends at their number."""
    seen = []
    workspace = make_workspace(tmp_path)
    listening = type(workspace)(
        root=workspace.root, device=workspace.device, progress=lambda *event: seen.append(event)
    )
    evaluate.run(case_with_samples(workspace, *noisy(digits)), listening)
    totals = {}
    for _, done, total, note in seen:
        assert totals.get(note, (0, total))[0] <= done <= total
        totals[note] = (done, total)
    finished = [done for done, total in totals.values() if done == total]
    assert sorted(finished) == sorted([60, len(digits.train), len(digits.held_out)])


def test_a_damaged_reference_is_built_again_and_told(digits, pixels, tmp_path):
    """Half a reference file in the store costs its computation, not the evaluation, and is no secret."""
    workspace = make_workspace(tmp_path)
    first = evaluate.run(case_with_samples(workspace, *noisy(digits)), workspace)
    (path,) = (tmp_path / "features").glob("*/reference.npz")
    path.write_bytes(path.read_bytes()[:1000])
    again = by_name(evaluate.run(case_with_samples(workspace, *noisy(digits), seed=1), workspace))
    assert again["FD-px"].value == by_name(first)["FD-px"].value
    assert "reference.npz" in again["evaluation_warnings"].note
