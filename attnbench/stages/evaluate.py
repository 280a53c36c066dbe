"""Stage `evaluate`: how far a case's samples are from real images, and how far real ones are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from attnbench.data import Dataset
from attnbench.data.dataset import PartName
from attnbench.errors import DataError
from attnbench.evaluation.by_class import by_class, class_figure, write_csv
from attnbench.evaluation.close_classes import (
    LEAST,
    MOST_CLASSES,
    closest_classes,
    images_each,
    measure_separation,
    separation_name,
    separation_not_measured,
)
from attnbench.evaluation.collection import SHARD_SIZE, ImageCollection, ImageShard
from attnbench.evaluation.dataset_images import dataset_images
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.reference import Reference, load_reference, save_reference
from attnbench.evaluation.requirements import check_sizes
from attnbench.evaluation.scorer import SEED, Scorer
from attnbench.evaluation.scores import measure
from attnbench.metrics.classifier import Classifier, LabelledImages, Recipe, load_or_train_classifier
from attnbench.results import Measurement
from attnbench.specs import Case, CodecSpec, content_hash
from attnbench.stages.latents.codec import fingerprint, load_codec
from attnbench.stages.latents.model_space import codec_of
from attnbench.stages.prepare import dataset_of
from attnbench.stages.scored_images import (
    JudgedImages,
    cache_folder,
    dataset_key,
    load_scorer,
    part_of,
    sampled_images,
    training_images,
)
from attnbench.storage.names import CLASSES, REFERENCE
from attnbench.storage.store import StageOutput, Workspace, features_folder, write_output

FLOOR, CODEC_FLOOR = "floor:", "floor-codec:"  # before a metric's name: real images in place of samples
FLOOR_IMAGES = 10_000  # of the training part, at least: fewer would be a biased floor
CODEC_FLOOR_IMAGES = 10_000  # at most: a decoder is slow, and more images would not change what is read off


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Measure the samples of a case against real images.

    Features are kept by content, floors and the classifier once per dataset, in `<root>/features`. Raises
    UserInputError where a setting does not fit the number of images.
    """
    folder = workspace.folder("evaluate", case)
    with workspace.holding(folder):
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        evaluation = Evaluation(
            case=case,
            workspace=workspace,
            dataset=dataset_of(case, workspace),
            samples=sampled_images(case, workspace),
        )
        output = StageOutput(measurements=evaluation.measurements(), artefacts=evaluation.class_artefacts())
        write_output(folder, output)
        return output


@dataclass(kw_only=True)
class Evaluation:
    """One run of the stage: its images, its networks (loaded when first needed), its progress."""

    case: Case
    workspace: Workspace
    dataset: Dataset
    samples: ImageCollection
    warnings: list[str] = field(default_factory=list, init=False)

    def measurements(self) -> list[Measurement]:
        """Return the metrics of the samples, their floors, and the class accuracies."""
        settings = self.case.evaluate
        kept = min(len(part_of(self.dataset, settings.reference)), settings.reference_images)
        check_sizes(settings, len(self.samples), kept)
        real = self.reference
        if real.provenance is not None:
            seen = self.scorer.provenance(self.samples)
            seen.check(real.provenance, f"the reference {real.name}")
        samples = self.scorer.features(self.scored_samples)  # once for all that is measured on them
        found = measure(settings, self.scorer.suffix, real, samples, self.scorer.pair_memory)
        separation = self._class_separation(samples)
        del samples  # gigabytes, perhaps, and floors need as much
        found += [*self._held_out_floor(), *self._codec_floor(), *separation]
        if settings.class_accuracy:
            found += self._class_accuracies()
        return [*found, *_as_measurements(list(dict.fromkeys([*self.warnings, *self.scorer.warnings])))]

    @functools.cached_property
    def training(self) -> LabelledImages:
        """What the networks of this stage are trained on."""
        return training_images(self.case, self.dataset, self.workspace, self.warnings.append)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The feature network with the case's settings."""
        self._advance(0, "loading the feature network")
        return load_scorer(self.case, self.workspace, self.training, self._scored)

    @functools.cached_property
    def reference(self) -> Reference:
        """The real images that everything is compared with; its file is shared by all cases of the data."""
        settings = self.case.evaluate
        what = ["reference", settings.reference, settings.reference_images, self.scorer.cache.key]
        path = cache_folder(self.case, self.dataset, self.workspace, *what) / REFERENCE
        if path.exists():
            try:
                return load_reference(path)
            except DataError as error:  # cut by a crash of the machine, or of another attnbench
                self.scorer.warn(f"{error}; done")
        save_reference(path, self.scorer.reference_from(self._real(settings.reference)))
        return load_reference(path)

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The judge of class accuracy: the same for every case of the same data."""
        self._advance(0, "loading or training the classifier")
        return load_or_train_classifier(
            self.training,
            features_folder(self.workspace.root),
            seed=SEED,
            device=self.workspace.device,
            recipe=Recipe(flip=self.dataset.flip),
            warn=self.warnings.append,
        )

    @functools.cached_property
    def judged_samples(self) -> JudgedImages:
        """The samples, whose class accuracy is found while their features are."""
        return JudgedImages(self.samples, self.classifier)

    @functools.cached_property
    def judged_held_out(self) -> JudgedImages:
        """The held-out images, likewise."""
        return JudgedImages(dataset_images(self.dataset, "held-out"), self.classifier)

    @property
    def scored_samples(self) -> ImageCollection:
        """The samples as the scorer reads them."""
        return self.judged_samples.collection if self.case.evaluate.class_accuracy else self.samples

    def _real(self, part: PartName) -> ImageCollection:
        """Return real images as the scorer reads them."""
        if part == "held-out" and self.case.evaluate.class_accuracy:
            return self.judged_held_out.collection
        return dataset_images(self.dataset, part)

    def class_artefacts(self) -> dict[str, str]:
        """Write the scores of each class where the settings ask for them; return the files' names."""
        settings, folder = self.case.evaluate, self.workspace.folder("evaluate", self.case)
        if not settings.per_class:
            return {}
        scores = by_class(
            self.reference.features.pooled,
            self.reference.labels,
            self.scorer.features(self.scored_samples).pooled,
            self.samples.labels,
            self.dataset.class_names,
            neighbours=settings.neighbours,
            at_least=max(10, settings.neighbours + 1),
        )
        write_csv(scores, folder / f"{CLASSES}.csv")
        class_figure(scores, folder / f"{CLASSES}.png", called=self.scorer.called, heading=self.case.label)
        return {CLASSES: f"{CLASSES}.png", f"{CLASSES}-table": f"{CLASSES}.csv"}

    def _held_out_floor(self) -> Iterable[Measurement]:
        """Score the part of the dataset that is not the reference as if it were samples."""
        scored = f"{self._few_of_all}{self._other_part} images scored"
        return self._floor(FLOOR, scored, len(self._floor_rows), self._floor_images)

    @property
    def _few_of_all(self) -> str:
        """Say of how many the floor's images are, where they are not all."""
        count, there = len(self._floor_rows), len(part_of(self.dataset, self._other_part))
        return "" if count == there else f"{count:,} of {there:,} "

    @functools.cached_property
    def _floor_rows(self) -> torch.Tensor:
        """Which images of the other part the floors are of: all held-out ones; of training ones as many.

        Of fewer than `FLOOR_IMAGES` held out, so many, evenly spaced. All of ImageNet's would take a day.
        """
        there = len(part_of(self.dataset, self._other_part))
        most = max(FLOOR_IMAGES, len(self.dataset.held_out))
        if self._other_part == "held-out" or there <= most:
            return torch.arange(there)
        return torch.linspace(0, there - 1, most, dtype=torch.float64).round().long()

    def _floor_images(self) -> ImageCollection:
        if self._other_part == "held-out":
            return self._real("held-out")
        return dataset_images(self.dataset, "train", self._floor_rows)

    @property
    def _other_part(self) -> PartName:
        """The part of the dataset that is not the reference."""
        return "held-out" if self.case.evaluate.reference == "train" else "train"

    def _codec_floor(self) -> Iterable[Measurement]:
        """Score real images that went through the autoencoder, which no latent model is expected to beat."""
        codec = codec_of(self.case)
        if codec is None or self.case.model.input != "latent":
            return []
        real = part_of(self.dataset, self.case.evaluate.reference)
        count = min(len(real), len(self.samples), CODEC_FLOOR_IMAGES)
        what = f"{count:,} reference images through the autoencoder {fingerprint(codec)}"
        return self._floor(CODEC_FLOOR, what, count, lambda: self._reconstructions(codec, count))

    def _reconstructions(self, spec: CodecSpec, count: int) -> ImageCollection:
        """Return evenly spaced reference images, encoded and decoded."""
        part = self.case.evaluate.reference
        real, known = part_of(self.dataset, part), dataset_key(self.case, self.dataset)
        chosen = torch.linspace(0, len(real) - 1, count).round().long()

        codec = functools.cache(lambda: load_codec(spec, self.workspace.device))

        def shard(rows: torch.Tensor) -> ImageShard:
            def through_codec(wanted: torch.Tensor) -> torch.Tensor:
                return torch.cat([codec().reconstruct(real.get(few)) for few in wanted.split(16)])

            return ImageShard(
                count=len(rows),
                find_key=lambda: content_hash([known, part, rows.tolist(), "codec", fingerprint(spec)]),
                load=lambda: through_codec(rows),
                load_one=lambda index: through_codec(rows[index : index + 1])[0],
            )

        side = self.dataset.image_size
        return ImageCollection(
            name=f"{self.dataset.name} ({part}) through the autoencoder",
            shards=tuple(shard(rows) for rows in chosen.split(SHARD_SIZE)),
            height=side,
            width=side,
            channels=self.dataset.channels,
        )

    def _floor(
        self, prefix: str, scored: str, count: int, images: Callable[[], ImageCollection]
    ) -> Iterable[Measurement]:
        settings = self.case.evaluate
        if count <= max(1, settings.neighbours):
            return []  # too few images to measure anything by; reports show no floor
        # the kernel distance is unbiased: a smaller subset changes its spread, not what it estimates
        fitting = settings.model_copy(update={"kd_subset_size": min(settings.kd_subset_size, count)})
        found = self._once(
            [prefix, scored, settings.model_dump(mode="json"), self.scorer.cache.key],
            lambda: StageOutput(
                measurements=measure(
                    fitting,
                    self.scorer.suffix,
                    self.reference,
                    self.scorer.features(images()),
                    self.scorer.pair_memory,
                )
            ),
        )
        return [_as_floor(measurement, prefix, scored) for measurement in found.measurements]

    def _once(self, what: list[object], find: Callable[[], StageOutput]) -> StageOutput:
        """Return what is computed from real images alone, once for all cases of the data."""
        folder = cache_folder(self.case, self.dataset, self.workspace, *what)
        known = self.workspace.finished(folder)
        if known is None:
            known = find()
            write_output(folder, known)
        return known

    def _class_separation(self, samples: ExtractedFeatures) -> list[Measurement]:
        """Return how well the samples of the closest classes separate, and how well real images do.

        The samples are the first of each class, which start from the same noise in every case of a seed.
        """
        settings, names, labels = self.case.evaluate, self.dataset.class_names, self.samples.labels
        real = self.reference
        assert real.labels is not None  # our datasets have them, and so have our samples
        assert labels is not None
        of_real = (real.features.pooled, real.labels)
        what = [settings.reference, settings.reference_images, self.scorer.cache.key, MOST_CLASSES]
        chosen = self._once(
            ["closest classes", *what],
            lambda: StageOutput(computed_with={"classes": closest_classes(*of_real, len(names))}),
        )
        classes: list[int] = chosen.computed_with["classes"]
        each = images_each(labels, classes) if classes else 0
        if not each:
            few = f"fewer than {LEAST} samples of one of {', '.join(names[label] for label in classes)}"
            found = separation_not_measured(few if classes else "the real images are of one class")
            return [self._on_features(measurement) for measurement in found]
        found = measure_separation(samples.pooled, labels, classes, each, names)
        other = self._other_part
        # only where the floor of the metrics has had their features found
        other_labels, few = part_of(self.dataset, other).labels[self._floor_rows], self._few_of_all
        if len(other_labels) > settings.neighbours and (known := images_each(other_labels, classes, each)):
            floor = self._once(
                ["class separation", other, known, *what, *([len(other_labels)] if few else [])],
                lambda: StageOutput(measurements=self._separation_of(classes, known)),
            )
            scored = f"{few}{other} images scored"
            found += [_as_floor(measurement, FLOOR, scored) for measurement in floor.measurements]
        elif known := images_each(real.labels, classes, each):
            itself = measure_separation(*of_real, classes, known, names)
            found = [
                m.model_copy(update={"note": f"{m.note}; of {known} real images each {r.value:.3f}"})
                for m, r in zip(found, itself, strict=True)
            ]
        return [self._on_features(measurement) for measurement in found]

    def _separation_of(self, classes: list[int], each: int) -> list[Measurement]:
        """Measure the floor's images, a random draw of each class: neighbours may be of one scene."""
        features = self.scorer.features(self._floor_images())
        order = features.canonical_order()
        labels = part_of(self.dataset, self._other_part).labels[self._floor_rows][order]
        return measure_separation(features.pooled[order], labels, classes, each, self.dataset.class_names)

    def _on_features(self, measurement: Measurement) -> Measurement:
        """Name a measurement after the feature network, as metrics are."""
        prefix, colon, kind = measurement.name.rpartition(":")
        name = separation_name(kind, self.scorer.suffix, self.case.evaluate.protocol)
        return measurement.model_copy(update={"name": prefix + colon + name})

    def _class_accuracies(self) -> list[Measurement]:
        """Return the classifier's accuracy on the samples and, beside it, on real held-out images."""
        note = f"by a small CNN (seed {SEED}) trained on {len(self.training.labels):,} real images"
        found = [
            Measurement(
                name="class_accuracy",
                values=[self.judged_samples.accuracy],
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
        count = len(held_out)
        known = self._once(
            ["class_accuracy_real"],
            lambda: StageOutput(
                measurements=[
                    Measurement(
                        name="class_accuracy_real",
                        values=[self.judged_held_out.accuracy],
                        n=count,
                        note=note,
                    )
                ]
            ),
        )
        return known.measurements

    def _scored(self, done: int, total: int, note: str) -> None:
        self.workspace.report("evaluate", done, total, note)

    def _advance(self, images: int, note: str = "") -> None:
        self.workspace.report("evaluate", images, len(self.samples), note)


def _as_floor(measurement: Measurement, prefix: str, scored: str) -> Measurement:
    """Rename a metric of real images, which competes with no model."""
    note = f"{scored}; {measurement.note}"
    return measurement.model_copy(update={"name": prefix + measurement.name, "better": "none", "note": note})


def _as_measurements(warnings: list[str]) -> list[Measurement]:
    """Return what the evaluation warned of as one record without a value, which reports show."""
    if not warnings:
        return []
    return [Measurement(name="evaluation_warnings", values=[len(warnings)], note="; ".join(warnings))]
