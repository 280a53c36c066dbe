"""All metrics of one set of images against a reference, as measurements with names and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnbench.contract import Features
from attnbench.errors import UnsupportedError, UserInputError
from attnbench.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision,
    recall,
    statistics,
)
from attnbench.metrics.names import BETTER, metric_name
from attnbench.results import Measurement
from attnbench.specs import EvaluateSpec, Metric

BIASED_BELOW = 10_000
"""With fewer images than this the Frechet distance of equal distributions is far from zero."""
SPLIT_SIZE = 5000  # images per split of the inception score, as in ADM's evaluator


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value, its spread over subsets or splits where it has one, and what a reader must know."""

    value: float
    note: str
    std: float | None = None


def check_sizes(settings: EvaluateSpec, num_samples: int, num_reference: int) -> None:
    """Raise UserInputError when a setting asks for more images than there are."""
    sizes = f"there are {num_samples} samples and {num_reference} reference images"
    smaller = min(num_samples, num_reference)
    if smaller < 2:
        raise UserInputError(f"distances need two images on each side, but {sizes}; raise sample.per_class")
    if "kd" in settings.metrics and not 2 <= settings.kd_subset_size <= smaller:
        raise UserInputError(
            f"evaluate.kd_subset_size is {settings.kd_subset_size}, but {sizes}; "
            f"set it to 2 ... {smaller}, or raise sample.per_class"
        )
    if {"precision", "recall"} & set(settings.metrics) and settings.neighbours >= smaller:
        raise UserInputError(
            f"evaluate.neighbours is {settings.neighbours}, but {sizes}; "
            f"set it to 1 ... {smaller - 1}, or raise sample.per_class"
        )


def measure(settings: EvaluateSpec, suffix: str, real: Features, fake: Features) -> list[Measurement]:
    """Return the metrics that `settings` names, in its order; a spread follows as `<name> std`.

    `real` is the reference, `fake` what is scored. Raises UnsupportedError for an inception score on
    features without logits.
    """
    measurements = []
    for metric in dict.fromkeys(settings.metrics):
        name, score = metric_name(metric, suffix), _SCORES[metric](settings, real, fake)
        shared = {"n": len(fake.pooled), "note": score.note}
        measurements.append(Measurement(name=name, values=[score.value], better=BETTER[metric], **shared))
        if score.std is not None:
            measurements.append(Measurement(name=f"{name} std", values=[score.std], **shared))
    return measurements


def _frechet(settings: EvaluateSpec, real: Features, fake: Features) -> Score:
    note = f"against {len(real.pooled):,} real images"
    if min(len(real.pooled), len(fake.pooled)) < BIASED_BELOW:
        note += f"; biased upwards below {BIASED_BELOW:,} images: compare at equal n only"
    return Score(value=frechet_distance(statistics(real.pooled), statistics(fake.pooled)), note=note)


def _kernel(settings: EvaluateSpec, real: Features, fake: Features) -> Score:
    found = kernel_distance(
        real.pooled, fake.pooled, subsets=settings.kd_subsets, subset_size=settings.kd_subset_size
    )
    note = f"mean and std of {settings.kd_subsets} subsets of {settings.kd_subset_size:,}; not x 1000"
    return Score(value=found.mean, std=found.std, note=note)


def _inception(settings: EvaluateSpec, real: Features, fake: Features) -> Score:
    if fake.logits is None:
        raise UnsupportedError(
            f"extractor {settings.extractor!r} gives no logits, so there is no inception score; "
            "remove `is` from evaluate.metrics or choose another extractor"
        )
    found = inception_score(fake.logits, split_size=SPLIT_SIZE)
    std = found.std if len(fake.logits) > SPLIT_SIZE else None  # one split has no spread
    return Score(value=found.mean, std=std, note=f"splits of {SPLIT_SIZE:,} after a seeded permutation")


def _precision(settings: EvaluateSpec, real: Features, fake: Features) -> Score:
    value = precision(real.pooled, fake.pooled, neighbours=settings.neighbours)
    return Score(value=value, note=_manifold_note(settings, real))


def _recall(settings: EvaluateSpec, real: Features, fake: Features) -> Score:
    value = recall(real.pooled, fake.pooled, neighbours=settings.neighbours)
    return Score(value=value, note=_manifold_note(settings, real))


def _manifold_note(settings: EvaluateSpec, real: Features) -> str:
    return f"k = {settings.neighbours}, against {len(real.pooled):,} real images"


_SCORES: Mapping[Metric, Callable[[EvaluateSpec, Features, Features], Score]] = {
    "fd": _frechet,
    "kd": _kernel,
    "is": _inception,
    "precision": _precision,
    "recall": _recall,
}
