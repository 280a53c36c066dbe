"""One feature network with its settings: sets of images in, measurements out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnbench.contract import ExtractorInputs
from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.features import ExtractedFeatures, FeatureCache
from attnbench.evaluation.images import open_images
from attnbench.evaluation.pair_memory import PairMemory
from attnbench.evaluation.reference import (
    ADM_ARRAYS,
    Provenance,
    Reference,
    holds,
    load_reference,
    reference_of,
    reference_of_statistics,
    with_adm_statistics,
)
from attnbench.evaluation.requirements import check_sizes
from attnbench.evaluation.scores import measure
from attnbench.evaluation.statistics_files import holds_statistics_alone
from attnbench.metrics.names import metric_name
from attnbench.plugins import registry
from attnbench.progress import Progress, unheard
from attnbench.results import Measurement
from attnbench.specs import EvaluateSpec, Metric

SEED = 0
"""Every set of images is judged by the same networks and the same random subsets."""


@dataclass(kw_only=True)
class Scorer:
    """Scores sets of images with one feature network, whose features are kept by content.

    `warnings` grows: what a reader of the numbers must know.
    """

    settings: EvaluateSpec
    cache: FeatureCache
    progress: Progress = unheard
    warnings: list[str] = field(default_factory=list)
    _digests: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def suffix(self) -> str:
        """What ends the metrics' names."""
        return self.cache.record.suffix

    def called(self, metric: Metric) -> str:
        """Return the name of a metric here."""
        return metric_name(metric, self.suffix, self.settings.protocol)

    def features(self, images: ImageCollection) -> ExtractedFeatures:
        """Return the features of all images, from the cache where they are known."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(done, len(images), images.name)

        found = self.cache.features(images, advance)
        self.warn(*images.warnings, *self.cache.warnings)
        self._digests[images.name] = found.digests
        return found

    def digests(self, images: ImageCollection) -> torch.Tensor:
        """Return the digests of all images, uint8 [N, 16], whose features are not read again for them."""
        known = self._digests.get(images.name)
        return self.features(images).digests if known is None else known

    def provenance(self, images: ImageCollection) -> Provenance:
        """Return what the features of these images depend on."""
        return Provenance(
            extractor=self.settings.extractor,
            protocol=self.settings.protocol,
            identity=self.cache.identity,
            height=images.height,
            width=images.width,
            channels=images.channels,
        )

    def reference_from(self, images: ImageCollection) -> Reference:
        """Return the reference that a set of real images makes."""
        return reference_of(
            images.name,
            self.features(images),
            self.provenance(images),
            labels=images.labels,
            class_names=images.class_names,
            most=self.settings.reference_images,
        )

    def open_reference(
        self, path: Path, image_size: int | None = None, opened: ImageCollection | None = None
    ) -> Reference:
        """Read a reference file, statistics alone, one of ADM's batches, or any set of images.

        `opened` are the images of the path, where they have been opened already.
        Raises DataError, and UserInputError where `image_size` is given and the file holds no images.
        """
        arrays = holds(path)
        alone = "meta" not in arrays and holds_statistics_alone(path)
        if image_size is not None and ("meta" in arrays or alone):
            raise UserInputError(f"--image-size cuts image files, and {path} holds none; leave it out")
        if alone:
            return self._statistics_alone(path)
        if "meta" in arrays:
            return self._loaded(path)
        images = opened or open_images(path, allow_jpeg=True, image_size=image_size)
        reference = self.reference_from(images)
        if not set(ADM_ARRAYS) <= arrays:
            return reference
        if (self.settings.extractor, self.settings.protocol) == ("inception-tf", "adm"):
            return with_adm_statistics(reference, path)
        self.warn(
            f"{path.name} holds statistics of Inception features, which are of no use to "
            f"{self.settings.extractor}: the reference is its {len(reference):,} images alone"
        )
        return reference

    def _loaded(self, path: Path) -> Reference:
        """Read a reference file; raises UserInputError where another number of its images is asked for."""
        reference, asked = load_reference(path), self.settings.reference_images
        if "reference_images" in self.settings.model_fields_set and asked != len(reference):
            raise UserInputError(
                f"{path} keeps {len(reference):,} images, {asked:,} are asked for; leave --reference-images "
                "out, or build the reference again with it"
            )
        return reference

    def _statistics_alone(self, path: Path) -> Reference:
        """Read a file of statistics alone; warns of what it does not say and of what is left out."""
        reference = reference_of_statistics(path)
        self.warn(
            f"{path.name} does not say of which network and resize its statistics are: they are taken to be "
            f"of {self.settings.extractor}, protocol {self.settings.protocol} (pytorch-fid's resize is "
            "neither adm nor clean)"
        )
        kept = self.settings_for(reference).metrics
        if left := [metric for metric in self.settings.metrics if metric not in kept]:
            self.warn(f"left out: {self._why_not(reference, left)}")
        return reference

    def settings_for(self, reference: Reference) -> EvaluateSpec:
        """Return the settings with the metrics that a reference allows; raises UserInputError.

        Statistics alone allow the Frechet distances (and the inception score, which needs no reference): of
        the usual metrics the others are left out, where the user has named them they are refused.
        """
        if len(reference):
            return self.settings
        possible = {"fd", "is"} | ({"sfd"} if reference.spatial is not None else set())
        impossible = [metric for metric in self.settings.metrics if metric not in possible]
        if impossible and "metrics" in self.settings.model_fields_set:
            raise UserInputError(self._why_not(reference, impossible))
        kept = [metric for metric in self.settings.metrics if metric in possible]
        return self.settings.model_copy(update={"metrics": kept})

    def _why_not(self, reference: Reference, metrics: list[Metric]) -> str:
        names = ", ".join(self.called(metric) for metric in metrics)
        return (
            f"{names} ({','.join(metrics)}): {reference.name} holds statistics alone (mean and covariance of "
            "pooled features"
            + (", and of spatial ones" if reference.spatial is not None else "")
            + "); name the images they are of, or ask with --metrics for what they allow"
        )

    def _check_width(self, reference: Reference, images: ImageCollection) -> None:
        """Raise DataError where statistics are not of this network; looks at one image."""
        if len(reference):
            return
        found = self.cache.network(images.image(0)[None])
        for kind, real, samples in (
            ("pooled", reference.pooled, found.pooled),
            ("spatial", reference.spatial, found.spatial),
        ):
            if real is not None and samples is not None and samples.shape[1] != len(real.mean):
                raise DataError(
                    f"{reference.name} holds statistics of {len(real.mean)} {kind} features, "
                    f"{self.settings.extractor} gives {samples.shape[1]}; choose the network they are of "
                    "with --extractor (2048: inception-tf), or name the images"
                )

    def measure(self, reference: Reference, images: ImageCollection) -> list[Measurement]:
        """Return the metrics of a set of images; raises UserInputError or DataError where they cannot be."""
        settings = self.settings_for(reference)
        check_sizes(settings, len(images), len(reference) or None)
        self._check_width(reference, images)
        if reference.provenance is not None:
            self.provenance(images).check(reference.provenance, f"the reference {reference.name}")
        return measure(settings, self.suffix, reference, self.features(images), self.pair_memory)

    @property
    def pair_memory(self) -> PairMemory:
        """What keeps the pairs within a reference, beside this network's features."""
        return PairMemory(folder=self.cache.folder / self.cache.key, warnings=self.warnings)

    def warn(self, *texts: str) -> None:
        """Add warnings, each once."""
        self.warnings += [text for text in texts if text not in self.warnings]


def make_scorer(
    settings: EvaluateSpec, cache: Path, device: torch.device, progress: Progress = unheard
) -> Scorer:
    """Return a scorer for images of any origin; raises UnknownNameError for an extractor nobody provides."""
    known = registry()
    known.extractor(settings.extractor)
    inputs = ExtractorInputs(
        device=device, seed=SEED, cache_dir=cache, weights=settings.weights, protocol=settings.protocol
    )
    features = FeatureCache(folder=cache, extractor=known.extractors[settings.extractor], inputs=inputs)
    return Scorer(settings=settings, cache=features, progress=progress)
