"""Stage `evaluate`: how far a case's samples are from real images, and how far real ones are."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from attnbench.contract import Features
from attnbench.data import Dataset, load_dataset
from attnbench.metrics.classifier import Classifier, LabelledImages, Recipe, load_or_train_classifier
from attnbench.metrics.scores import check_sizes, measure
from attnbench.plugins import registry
from attnbench.results import Measurement
from attnbench.specs import Case
from attnbench.stages.features import (
    EVALUATION_SEED,
    Network,
    Part,
    Samples,
    batches_of,
    cache_folder,
    extract,
    load_network,
    part_of,
    real_features,
    training_images,
)
from attnbench.stages.store import StageOutput, Workspace, read_output, write_output

FLOOR = "floor:"  # before a metric's name: the same metric between real images


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Measure the samples of a case against real images.

    Features of real images, floors and the classifier are computed once per dataset and kept in
    `<root>/features`. Raises UserInputError where a setting does not fit the number of images.
    """
    folder = workspace.folder("evaluate", case)
    finished = read_output(folder)
    if finished is not None:
        return finished
    evaluation = Evaluation(
        case=case,
        workspace=workspace,
        dataset=load_dataset(case.data),
        samples=Samples.open(workspace.folder("sample", case)),
    )
    output = StageOutput(measurements=evaluation.measurements())
    write_output(folder, output)
    return output


@dataclass(kw_only=True)
class Evaluation:
    """One run of the stage: its images, its networks (loaded when first needed), its progress."""

    case: Case
    workspace: Workspace
    dataset: Dataset
    samples: Samples
    done: int = field(default=0, init=False)

    def measurements(self) -> list[Measurement]:
        """Return the metrics of the samples, their floors, and the class accuracies."""
        settings, suffix = self.case.evaluate, registry().extractor(self.case.evaluate.extractor).suffix
        check_sizes(settings, len(self.samples), len(part_of(self.dataset, settings.reference)))
        real = self._real(settings.reference)
        fake = extract(self.network, (images for images, _ in self.samples.batches()), self._advance)
        found = measure(settings, suffix, real, fake)
        found += self._floors(real, suffix)
        if settings.class_accuracy:
            found += self._class_accuracies()
        return found

    @functools.cached_property
    def training(self) -> LabelledImages:
        """What the networks of this stage are trained on."""
        return training_images(self.case, self.dataset, self.workspace)

    @functools.cached_property
    def network(self) -> Network:
        """The feature network."""
        self._advance(0, "loading the feature network")
        return load_network(self.case, self.workspace, self.training)

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The judge of class accuracy: the same for every case of the same data."""
        self._advance(0, "loading or training the classifier")
        return load_or_train_classifier(
            self.training,
            self.workspace.root / "features",
            seed=EVALUATION_SEED,
            device=self.workspace.device,
            recipe=Recipe(flip=self.dataset.flip),
        )

    def _real(self, part: Part) -> Features:
        return real_features(
            self.case, self.dataset, part, self.workspace, lambda: self.network, self._advance
        )

    def _floors(self, real: Features, suffix: str) -> list[Measurement]:
        """Score the part of the dataset that is not the reference as if it were samples."""
        settings = self.case.evaluate
        other: Part = "held-out" if settings.reference == "train" else "train"
        count = len(part_of(self.dataset, other))
        if count <= max(1, settings.neighbours):
            return []  # too few images to measure anything by; reports show no floor
        what = ["floor", *settings.metrics, settings.reference, settings.neighbours]
        what += [settings.kd_subsets, settings.kd_subset_size]
        folder = cache_folder(self.case, self.dataset, self.workspace, *what)
        known = read_output(folder)
        if known is None:
            # the kernel distance is unbiased: a smaller subset changes its spread, not what it estimates
            fitting = settings.model_copy(update={"kd_subset_size": min(settings.kd_subset_size, count)})
            known = StageOutput(measurements=measure(fitting, suffix, real, self._real(other)))
            write_output(folder, known)
        return [_as_floor(measurement, other) for measurement in known.measurements]

    def _class_accuracies(self) -> list[Measurement]:
        """Return the classifier's accuracy on the samples and, beside it, on real held-out images."""
        correct = sum(self.classifier.correct(*batch) for batch in self.samples.batches())
        note = f"by a small CNN (seed {EVALUATION_SEED}) trained on {len(self.training.labels):,} real images"
        found = [
            Measurement(
                name="class_accuracy",
                values=[correct / len(self.samples)],
                n=len(self.samples),
                better="higher",
                note=note,
            )
        ]
        return found + self._real_accuracy(note)

    def _real_accuracy(self, note: str) -> list[Measurement]:
        held_out = self.dataset.held_out
        if not len(held_out):
            return []
        folder = cache_folder(self.case, self.dataset, self.workspace, "class_accuracy_real")
        known = read_output(folder)
        if known is None:
            correct = sum(self.classifier.correct(*batch) for batch in batches_of(held_out))
            accuracy = Measurement(
                name="class_accuracy_real", values=[correct / len(held_out)], n=len(held_out), note=note
            )
            known = StageOutput(measurements=[accuracy])
            write_output(folder, known)
        return known.measurements

    def _advance(self, images: int, note: str = "") -> None:
        """Report progress in images out of all that may have to be looked at."""
        self.done += images
        total = len(self.samples) + len(self.dataset.train) + len(self.dataset.held_out)
        self.workspace.report("evaluate", min(self.done, total), total, note)


def _as_floor(measurement: Measurement, scored: Part) -> Measurement:
    """Rename a metric of real images, which competes with no model."""
    note = f"{scored} images scored; {measurement.note}"
    return measurement.model_copy(update={"name": FLOOR + measurement.name, "better": "none", "note": note})
