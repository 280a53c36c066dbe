"""Scores of each class by itself: which classes a model has not learnt."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.labelled import checked_labels, same_width
from attnbench.evaluation.pictures import FAINT, INK, PALETTE, drawing, new_figure, save_png, shortened
from attnbench.metrics.checks import check_features
from attnbench.metrics.kernel import kernel_
from attnbench.metrics.pairwise import pairwise
from attnbench.specs import Metric
from attnbench.storage.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Unbiased MMD^2 of two sets and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one class."""

    kernel_distance: float
    standard_error: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many images of either set, and its scores or the reason why it has none."""

    label: int
    name: str
    n: int
    reference_n: int
    scores: Scores | None = None
    reason: str = ""


def by_class(
    reference: torch.Tensor,
    reference_labels: torch.Tensor | None,
    samples: torch.Tensor,
    sample_labels: torch.Tensor | None,
    class_names: Sequence[str],
    *,
    neighbours: int = 3,
    at_least: int = 10,
    chunk: int = 2048,
) -> list[ClassScore]:
    """Return kernel distance, precision and recall of every class, in the order of `class_names`.

    `reference` [N, F] and `samples` [M, F] are features, with labels [N] and [M]. The kernel distance is
    unbiased and compares between classes of any size. Precision and recall do depend on both n: compare them
    between classes of equal n. A class with fewer than `at_least` images in either set has a reason instead
    of numbers. There is no Frechet distance per class: its bias at the n of a class swamps it (two identical
    512-d standard normals score 264 at n = 500).
    Raises DataError for missing labels, UserInputError for `at_least` below 3 or neighbours + 1.
    """
    x, y = reference, samples
    check_features(x, "features of the reference", at_least=1)
    check_features(y, "features of the samples", at_least=1)
    same_width(x, y)
    least = max(neighbours + 1, 3)
    if neighbours < 1 or at_least < least:
        raise UserInputError(
            f"class-wise scores with {neighbours} neighbours and at least {at_least} images per class: "
            f"choose 1 neighbour or more and at least {least} images"
        )
    names = len(class_names)
    x_labels = checked_labels(reference_labels, "reference", images=len(x), classes=names)
    y_labels = checked_labels(sample_labels, "samples", images=len(y), classes=names)
    found = []
    for label, name in enumerate(class_names):
        a, b = x[(x_labels == label).to(x.device)], y[(y_labels == label).to(y.device)]
        reason = _too_few(len(a), len(b), at_least)
        scores = None if reason else _scores(a.double(), b.double(), neighbours, chunk)
        found.append(
            ClassScore(label=label, name=name, n=len(b), reference_n=len(a), scores=scores, reason=reason)
        )
    return found


def _too_few(reference_n: int, n: int, at_least: int) -> str:
    counts = ((n, "samples"), (reference_n, "reference images"))
    few = [f"{count} {what}" for count, what in counts if count < at_least]
    return f"{' and '.join(few)}, fewer than {at_least}" if few else ""


def _scores(reference: torch.Tensor, samples: torch.Tensor, neighbours: int, chunk: int) -> Scores:
    distance = full_kernel_distance(reference, samples, chunk=chunk)
    found = pairwise(reference, samples, neighbours=neighbours, subsets=None, chunk=chunk)
    return Scores(
        kernel_distance=distance.value,
        standard_error=distance.standard_error,
        precision=float(found.sample_inside.double().mean()),
        recall=float(found.reference_inside.double().mean()),
    )


def full_kernel_distance(x: torch.Tensor, y: torch.Tensor, *, chunk: int = 2048) -> KernelDistance:
    """Return the unbiased MMD^2 with the kernel (x.y / F + 1)^3 of all of x [m, F] and y [n, F].

    Float64; m and n may differ. Over all images instead of over subsets, so there is no draw. May be
    slightly negative. The standard error is the two-sample jackknife's, which leaves out every image of
    either set once; between equal distributions, where the estimate is degenerate, it errs to the large side.
    Raises UserInputError for fewer than three images.
    Source: arXiv:1801.01401, eq. 4; Arvesen 1969, Ann. Math. Statist. 40 (jackknife of U-statistics).
    """
    check_features(x, "features of the reference", at_least=3)
    check_features(y, "features of the samples", at_least=3)
    x, y = x.double(), y.double().to(x.device)
    m, n = len(x), len(y)
    within_x = _kernel_sums(x, x, chunk)[0] - _kernel_of_itself(x)  # [m], sums over the other images
    within_y = _kernel_sums(y, y, chunk)[0] - _kernel_of_itself(y)
    x_to_y, y_to_x = _kernel_sums(x, y, chunk)
    mean_x, mean_y = within_x.sum() / (m * (m - 1)), within_y.sum() / (n * (n - 1))
    total = x_to_y.sum()
    without_x = (within_x.sum() - 2 * within_x) / ((m - 1) * (m - 2)) - 2 * (total - x_to_y) / ((m - 1) * n)
    without_y = (within_y.sum() - 2 * within_y) / ((n - 1) * (n - 2)) - 2 * (total - y_to_x) / (m * (n - 1))
    # the part of the other set alone is the same in all of them and drops out of the spread
    variance = (m - 1) * without_x.var(correction=0) + (n - 1) * without_y.var(correction=0)
    return KernelDistance(
        value=float(mean_x + mean_y - 2 * total / (m * n)), standard_error=math.sqrt(float(variance))
    )


def _kernel_sums(x: torch.Tensor, y: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kernel of x [m, F] with y [n, F] summed over y, [m], and over x, [n]; blocks in memory."""
    over_y, over_x = x.new_zeros(len(x)), x.new_zeros(len(y))
    for rows, to in zip(x.split(chunk), over_y.split(chunk), strict=True):
        for others, also_to in zip(y.split(chunk), over_x.split(chunk), strict=True):
            values = kernel_(rows @ others.T, x.shape[1])
            to += values.sum(dim=1)
            also_to += values.sum(dim=0)
    return over_y, over_x


def _kernel_of_itself(x: torch.Tensor) -> torch.Tensor:
    return (x.square().sum(dim=1) / x.shape[1] + 1) ** 3


def write_csv(found: Sequence[ClassScore], path: Path) -> None:
    """Write one line per class, with empty fields where there is a reason; raises StorageError."""
    numbers = [field.name for field in fields(Scores)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "name", "n", "reference_n", *numbers, "reason"])
    for c in found:
        values = ["" if c.scores is None else getattr(c.scores, name) for name in numbers]
        writer.writerow([c.label, c.name, c.n, c.reference_n, *values, c.reason])
    atomic_write(path, text.getvalue().encode())


def class_figure(
    found: Sequence[ClassScore], path: Path, *, called: Callable[[Metric], str], heading: str, ends: int = 10
) -> None:
    """Draw kernel distance, precision and recall as bars, the worst kernel distance on top, as PNG.

    Of more than 2 `ends` classes the `ends` worst and the `ends` best are drawn. Whiskers are one standard
    error. `called` returns the name of a metric. Raises DataError when no class has scores, StorageError.
    """
    ranked = sorted(
        ((c.scores, c) for c in found if c.scores is not None), key=lambda pair: -pair[0].kernel_distance
    )
    if not ranked:
        first = f": {found[0].name!r} has {found[0].reason}" if found else ""
        raise DataError(f"no class has enough images for scores of its own{first}; give more per class")
    cut = len(ranked) > 2 * ends
    shown = [*ranked[:ends], *ranked[-ends:]] if cut else ranked
    places = [i + (cut and i >= ends) for i in range(len(shown))]  # a gap where classes are left out
    notes = f"{ends} worst and {ends} best of {len(ranked)} classes" if cut else f"all {len(ranked)} classes"
    if len(ranked) < len(found):
        notes += f", {len(found) - len(ranked)} without scores for too few images"
    with drawing([heading, *(c.name for _, c in shown)]) as legible:
        labels = [f"{c.label}: {shortened(legible(c.name))}  ({c.n} / {c.reference_n})" for _, c in shown]
        figure = new_figure(8.4, 1.4 + 0.27 * (places[-1] + 1))
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
        distances = [s.kernel_distance for s, _ in shown]
        _bars(left, places, distances, called("kd"), "lower", PALETTE[0])
        precisions, recalls = [s.precision for s, _ in shown], [s.recall for s, _ in shown]
        errors = [s.standard_error for s, _ in shown]
        left.errorbar(distances, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1)
        _bars(middle, places, precisions, called("precision"), "higher", PALETTE[2])
        _bars(right, places, recalls, called("recall"), "higher", PALETTE[1])
        for axes in (middle, right):
            axes.set_xlim(0, 1)
        left.set_yticks(places, labels)
        left.invert_yaxis()
        figure.suptitle(f"{legible(heading)}\n{notes}; in brackets: samples / reference images")
        save_png(figure, path)


def _bars(
    axes: Axes, places: Sequence[int], values: Sequence[float], title: str, better: str, colour: str
) -> None:
    axes.barh(places, values, height=0.7, color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_title(title)
    axes.set_xlabel(f"{better} is better")
    axes.grid(axis="x", color=FAINT)
    axes.tick_params(axis="y", length=0)
    axes.margins(y=0.02)
