"""All metrics of one set of images against a reference, as measurements with names, intervals and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from attnbench.errors import UnsupportedError
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.pair_memory import PairMemory
from attnbench.evaluation.reference import Reference
from attnbench.evaluation.requirements import MANIFOLD
from attnbench.metrics.gaussian import Statistics, frechet, statistics
from attnbench.metrics.inception_score import inception_score
from attnbench.metrics.names import BETTER, metric_name
from attnbench.metrics.pairwise import Pairwise
from attnbench.metrics.uncertainty import interval, share_interval, standard_error
from attnbench.results import Measurement
from attnbench.specs import EvaluateSpec, Metric

BIASED_BELOW = 10_000
"""With fewer images than this the Frechet distance of equal distributions is far from zero."""
SPLIT_SIZE = 5000  # images per split of the inception score, as in ADM's evaluator


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value, its uncertainty, and what a reader must know."""

    value: float
    interval: tuple[float, float] | None
    """95 % over samples, the reference fixed; None where it is not known, and the note says why."""
    note: str
    std: float | None = None
    """Spread over subsets or splits, where the metric has them."""


def measure(
    settings: EvaluateSpec,
    suffix: str,
    reference: Reference,
    samples: ExtractedFeatures,
    memory: PairMemory | None = None,
) -> list[Measurement]:
    """Return the metrics that `settings` names, in its order; a spread over subsets follows as `<name> std`.

    `samples` are in any order: all but an inception score `in the order given` are functions of the set.
    `memory` keeps what is the reference's alone.
    Raises UnsupportedError where the extractor has no logits or maps for a metric.
    """
    scores = _Scores(settings, reference, samples, memory or PairMemory())
    return [m for metric in dict.fromkeys(settings.metrics) for m in _measured(metric, suffix, scores)]


def _measured(metric: Metric, suffix: str, scores: _Scores) -> Iterator[Measurement]:
    name = metric_name(metric, suffix, scores.settings.protocol)
    score = scores.of(metric)
    n, note = len(scores.samples), score.note
    yield Measurement(
        name=name,
        values=[score.value],
        better=BETTER[metric],
        interval=score.interval,
        n=n,
        note=note,
    )
    if score.std is not None:
        yield Measurement(name=f"{name} std", values=[score.std], n=n, note=note)


class _Scores:
    """The metrics of one set of samples; what several of them share is computed once."""

    def __init__(
        self,
        settings: EvaluateSpec,
        reference: Reference,
        samples: ExtractedFeatures,
        memory: PairMemory,
    ) -> None:
        self.memory = memory
        self.settings, self.reference, self.samples = settings, reference, samples
        self.order = samples.canonical_order()

    def of(self, metric: Metric) -> Score:
        by_name: dict[Metric, Callable[[], Score]] = {
            "fd": lambda: self._frechet(self.reference.pooled, self._pooled),
            "sfd": lambda: self._frechet(self._spatial_reference, self._spatial),
            "kd": lambda: self._kernel(self._pairs, self.samples.pooled.shape[1]),
            "skd": lambda: self._kernel(self._spatial_pairs, self._spatial_reference.mean.shape[0]),
            "is": self._inception,
            "precision": self._precision,
            "recall": self._recall,
        }
        return by_name[metric]()

    def _frechet(self, reference: Statistics, features: torch.Tensor) -> Score:
        value, influence = frechet(reference, statistics(features), features)
        note = f"against {self.reference.gaussian_note or f'{len(self.reference):,} real images'}"
        if len(features) < BIASED_BELOW or 0 < reference.n < BIASED_BELOW:
            note += f"; biased upwards below {BIASED_BELOW:,} images: compare at equal n only"
        return Score(value=value, interval=interval(value, standard_error(influence)), note=note)

    def _kernel(self, pairs: Pairwise, width: int) -> Score:
        values = torch.tensor(pairs.kernel_values, dtype=torch.float64)
        note = (
            f"mean and std of {self.settings.kd_subsets} subsets of {self.settings.kd_subset_size:,} "
            f"({width} features, gamma = 1/{width}) against {len(self.reference):,} real images; not x 1000"
        )
        value, error = float(values.mean()), pairs.kernel_error
        if error is None:
            note += (
                "; no interval: one subset does not tell what its draw does (--kd-subsets; in a suite: "
                "evaluate.kd_subsets)"
            )
        return Score(
            value=value,
            std=float(values.std(correction=0)),
            interval=None if error is None else interval(value, error),
            note=note,
        )

    def _inception(self) -> Score:
        permuted, logits = self.settings.is_order == "permuted", self.samples.logits
        if logits is None:
            raise UnsupportedError(
                f"extractor {self.settings.extractor!r} gives no logits, so there is no inception score; "
                "remove `is` from the metrics or choose another extractor"
            )
        found = inception_score(
            logits[self.order] if permuted else logits,
            split_size=SPLIT_SIZE,
            shuffle_seed=0 if permuted else None,
        )
        order = "after a seeded permutation" if permuted else "in the order given (as ADM's code)"
        several = len(logits) > SPLIT_SIZE  # one split has no spread
        return Score(
            value=found.mean,
            std=found.std if several else None,
            interval=interval(found.mean, standard_error(found.influence)),
            note=f"splits of {SPLIT_SIZE:,} {order}",
        )

    def _precision(self) -> Score:
        inside = self._pairs.sample_inside.double()
        share = float(inside.mean())
        found = share_interval(share, standard_error(inside), counted=len(inside))
        return Score(value=share, interval=found, note=self._manifold_note)

    def _recall(self) -> Score:
        inside, error = self._pairs.reference_inside, self._pairs.recall_error
        share, note = float(inside.double().mean()), self._manifold_note
        if error is None:
            note += (
                f"; no interval: a quarter of {len(self.samples):,} samples has no {self.settings.neighbours}"
            )
            note += " neighbours for each"
            return Score(value=share, interval=None, note=note)
        return Score(value=share, interval=share_interval(share, error, counted=len(inside)), note=note)

    @property
    def _manifold_note(self) -> str:
        sizes = f"{len(self.samples):,} samples and {len(self.reference):,} real images"
        return f"k = {self.settings.neighbours}, {sizes}"

    @cached_property
    def _pairs(self) -> Pairwise:
        wanted = set(self.settings.metrics)
        return self.memory.pairwise(
            self.reference.features.pooled,
            self._pooled,
            neighbours=self.settings.neighbours if set(MANIFOLD) & wanted else None,
            subsets=self.settings.kd_subsets if "kd" in wanted else None,
            subset_size=self.settings.kd_subset_size,
        )

    @cached_property
    def _spatial_pairs(self) -> Pairwise:
        if self.reference.features.spatial is None:
            raise self._no_maps()
        return self.memory.pairwise(
            self.reference.features.spatial,
            self._spatial,
            neighbours=None,
            subsets=self.settings.kd_subsets,
            subset_size=self.settings.kd_subset_size,
        )

    @property
    def _pooled(self) -> torch.Tensor:
        """Pooled features in canonical order: a copy, made anew so that no two stay in memory."""
        return self.samples.pooled[self.order]

    @property
    def _spatial(self) -> torch.Tensor:
        """Spatial features in canonical order, as `_pooled`."""
        if self.samples.spatial is None:
            raise self._no_maps()
        return self.samples.spatial[self.order]

    @property
    def _spatial_reference(self) -> Statistics:
        if self.reference.spatial is None:
            raise self._no_maps()
        return self.reference.spatial

    def _no_maps(self) -> UnsupportedError:
        return UnsupportedError(
            f"extractor {self.settings.extractor!r} gives no maps, so there are no spatial distances; "
            "remove `sfd` and `skd` from the metrics or choose another extractor"
        )
