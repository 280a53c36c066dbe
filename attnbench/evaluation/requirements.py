"""What an evaluation needs of its network and its numbers of images, known before any image is looked at."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench.contract import FeatureExtractor
from attnbench.errors import UserInputError
from attnbench.specs import EvaluateSpec, Metric

KERNEL: tuple[Metric, ...] = ("kd", "skd")
SPATIAL: tuple[Metric, ...] = ("sfd", "skd")
MANIFOLD: tuple[Metric, ...] = ("precision", "recall")


def extractor_problems(settings: EvaluateSpec, extractor: FeatureExtractor) -> Iterator[tuple[str, str]]:
    """Yield each setting that asks of a network what it says it has not, with a sentence."""
    if settings.protocol not in extractor.protocols:
        yield (
            "protocol",
            f"extractor {extractor.name} has no protocol {settings.protocol!r}; "
            f"choose one of: {', '.join(extractor.protocols)}",
        )
    if settings.weights is not None and not extractor.takes_weights:
        yield (
            "weights",
            f"extractor {extractor.name} takes no file, got {settings.weights}; name none, or choose the "
            "extractor that the file belongs to (--extractor inception-tf; in a suite: evaluate.extractor)",
        )
    for needs, present, metrics in (
        ("logits", extractor.logits, ("is",)),
        ("feature maps", extractor.spatial, SPATIAL),
    ):
        lacking = [metric for metric in settings.metrics if metric in metrics]
        if lacking and not present:
            kept = ", ".join(metric for metric in settings.metrics if metric not in lacking)
            yield (
                "metrics",
                f"extractor {extractor.name} gives no {needs}, which {' and '.join(lacking)} need; set "
                f"metrics to [{kept}], or choose another extractor",
            )


def size_problems(
    settings: EvaluateSpec, num_samples: int, num_reference: int | None
) -> Iterator[tuple[str, str]]:
    """Yield each setting that asks for more images than there are, with a sentence.

    `num_reference` is None for a reference of statistics alone, which no setting counts.
    """
    sizes = f"there are {num_samples} samples and {num_reference} reference images"
    smaller = num_samples if num_reference is None else min(num_samples, num_reference)
    if smaller < 2:
        yield "reference", f"distances need two images on each side, but {sizes}; give or draw more images"
        return
    if set(KERNEL) & set(settings.metrics) and not 2 <= settings.kd_subset_size <= smaller:
        yield (
            "kd_subset_size",
            f"kd_subset_size is {settings.kd_subset_size}, but {sizes}; "
            f"set it (--kd-subset-size; in a suite: evaluate.kd_subset_size) to 2 ... {smaller}, or give or "
            "draw more images",
        )
    if set(MANIFOLD) & set(settings.metrics) and settings.neighbours >= smaller:
        yield (
            "neighbours",
            f"neighbours is {settings.neighbours}, but {sizes}; set it (--neighbours; in a suite: "
            f"evaluate.neighbours) to 1 ... {smaller - 1}, or give or draw more images",
        )


def check_sizes(settings: EvaluateSpec, num_samples: int, num_reference: int | None) -> None:
    """Raise UserInputError when a setting asks for more images than there are."""
    for _, problem in size_problems(settings, num_samples, num_reference):
        raise UserInputError(problem)
