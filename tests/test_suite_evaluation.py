"""What the stage `evaluate` would refuse after a training is refused when a suite is read."""

from pathlib import Path

import pytest
from image_files import SIDE, class_files, make, write_files
from suite_registry import SMALL, errors, load

from attnbench.data import load_dataset, num_images
from attnbench.evaluation.requirements import extractor_problems
from attnbench.plugins import registry
from attnbench.specs import DigitsData, EvaluateSpec, PhotoPatchesData


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "evaluate={extractor: dinov2}",
            "evaluate.metrics: extractor dinov2 gives no logits, which is need; set metrics to [fd, sfd, kd, "
            "skd, precision, recall]",
        ),
        (
            "evaluate={protocol: clean, extractor: digits-cnn}",
            "evaluate.protocol: extractor digits-cnn has no",
        ),
        ("evaluate={weights: w.pth}", "evaluate.weights: extractor efficientnet-lite0 takes no file, got"),
        ("sample.per_class=50", "evaluate.kd_subset_size: kd_subset_size is 1000, but there are 500 samples"),
        ("evaluate={reference: held-out}", "2000 samples and 359 reference images"),
        ("evaluate={reference_images: 900}", "2000 samples and 900 reference images"),
        ("evaluate={metrics: [recall], neighbours: 2000}", "evaluate.neighbours: neighbours is 2000"),
    ],
)
def test_what_evaluate_would_refuse(tmp_path: Path, override: str, line: str) -> None:
    """One line that names the setting, before anything is trained."""
    (found,) = errors(tmp_path, SMALL, override)
    assert line in found


def test_what_is_possible_passes(tmp_path: Path) -> None:
    """The same networks and numbers with metrics that they allow."""
    for override in ("evaluate={extractor: dinov2, metrics: [fd, sfd]}", "evaluate={kd_subset_size: 300}"):
        assert load(tmp_path, SMALL, override)


def test_held_out_images_must_be_kept_out(tmp_path: Path) -> None:
    """A reference of held-out images, of which a folder keeps none."""
    data = "data={name: image-folder, path: x, image_size: 8, held_out_fraction: 0}"
    found = errors(tmp_path, SMALL, data, "model.in_channels=3", "evaluate={reference: held-out}")
    assert any("evaluate.reference: held-out: data.held_out_fraction is 0" in line for line in found)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("evaluate={kd_subset_size: 11}", "kd_subset_size is 11, but there are 80 samples and 10 reference"),
        (
            "evaluate={kd_subset_size: 10, neighbours: 10}",
            "neighbours is 10, but there are 80 samples and 10",
        ),
        ("evaluate={kd_subset_size: 10, neighbours: 9}", ""),
    ],
)
def test_too_few_images_of_a_folder_are_seen_by_their_number(
    tmp_path: Path, settings: str, line: str
) -> None:
    """Half of ten files a class are held out; no file is opened, these are none that could be."""
    for number in range(20):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(b"")
    data = f"data={{name: image-folder, path: {tmp_path / 'images'}, image_size: 8, held_out_fraction: 0.5}}"
    overrides = [data, "model.in_channels=3", "sample.per_class=40", settings, "evaluate.reference=held-out"]
    if line:
        assert any(line in found for found in errors(tmp_path, SMALL, *overrides))
    else:
        assert load(tmp_path, SMALL, *overrides)


def test_too_few_images_of_a_prepared_set_are_seen_in_its_card(tmp_path: Path) -> None:
    """Exactly as many as it says."""
    write_files(tmp_path / "source", class_files(("cat",), 6))
    make(tmp_path / "source", tmp_path / "set", held_out=2)
    data = f"data={{name: prepared, path: {tmp_path / 'set'}, image_size: {SIDE}}}"
    overrides = [data, "model.in_channels=3", "evaluate={kd_subset_size: 7, reference: train}"]
    assert any("and 4 reference images" in found for found in errors(tmp_path, SMALL, *overrides))


@pytest.mark.parametrize("spec", [DigitsData(), PhotoPatchesData(crops_per_class=9)])
def test_numbers_of_images_are_those_of_the_data(spec) -> None:
    """What is known without opening an image is what is there."""
    dataset = load_dataset(spec)
    assert num_images(spec) == {"train": len(dataset.train), "held-out": len(dataset.held_out)}


def test_a_plugin_of_before_promises_everything() -> None:
    """An extractor that says nothing is not refused: its features tell, when they are there."""
    from attnbench.contract import FeatureExtractor

    old = FeatureExtractor(name="old", suffix="old", summary="", source="", load=lambda inputs: None)
    assert not list(extractor_problems(EvaluateSpec(weights=Path("w.pth")), old))


def test_built_in_networks_say_what_they_give() -> None:
    """Only DINOv2 has no logits; all have maps."""
    known = {name: provided.record for name, provided in registry().extractors.items()}
    assert [name for name, record in known.items() if not record.logits] == ["dinov2"]
    assert all(record.spatial for record in known.values())
