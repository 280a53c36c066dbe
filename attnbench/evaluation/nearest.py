"""The nearest training images of samples: distances, exact copies, and a picture to judge them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnbench.errors import UserInputError
from attnbench.evaluation.labelled import same_width
from attnbench.evaluation.pictures import ALARM, INK, drawing, new_figure, save_png
from attnbench.metrics.bounded_search import candidates, float32_is_exact_enough
from attnbench.metrics.checks import check_features

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AT_ONCE = 512  # differences of two features in float64
_SPARE = 8  # candidates beyond k: rounding of the fast distances may exchange near ties, not these


def nearest(
    samples: torch.Tensor,
    training: torch.Tensor,
    k: int = 1,
    *,
    chunk: int = 2048,
    leave_one_out: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances [M, k], ascending, and rows [M, k] of the k nearest of `training` [N, F].

    Euclidean, float64, from the differences, so that a copy lies at exactly 0; equal distances go to the
    lower row. On a CPU candidates come of float32 products, whose error bound proves that none is missing;
    the few rows where it does not (and all elsewhere) take k + 8 of float64's ||x||^2 + ||y||^2 - 2 x.y, of
    more equal distances than these some. At most 2048 x 2048 float32 numbers or chunk x (chunk + k + 8) of
    float64 are in memory. `leave_one_out` compares a set with itself: row i is no neighbour of sample i.
    Raises UserInputError when k exceeds the neighbours there are.
    """
    x, y = samples, training
    check_features(x, "features of the samples", at_least=1)
    check_features(y, "features of the training images", at_least=1)
    same_width(x, y)
    if leave_one_out and len(x) != len(y):
        raise UserInputError(f"leave-one-out needs one set, got {len(x)} and {len(y)} images")
    most = len(y) - leave_one_out
    if not 1 <= k <= most:
        raise UserInputError(
            f"{k} nearest of {len(y)} training images{' leaving one out' if leave_one_out else ''}: "
            f"choose 1 ... {most}"
        )
    own = torch.arange(len(x)) if leave_one_out else None
    if not float32_is_exact_enough(x, y):
        return _nearest_in_double(x, own, y, k, chunk)
    distances, rows, proved = _proved(x, own, y, k)
    open_rows = torch.nonzero(~proved).flatten()
    if len(open_rows):
        found = _nearest_in_double(x[open_rows], None if own is None else own[open_rows], y, k, chunk)
        distances[open_rows], rows[open_rows] = found
    return distances, rows


def _proved(
    x: torch.Tensor, own: torch.Tensor | None, y: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return distances and rows [M, k], and whether they are proved to be the nearest, bool [M]."""
    near = candidates(x, y if own is None else x, k + _SPARE + (own is not None))
    exact = torch.full_like(near.bounds, torch.inf)
    if own is not None:
        itself = near.rows == own[:, None]
    farthest = None  # of the first k exact distances: whose bound is above is no neighbour
    for column in range(near.rows.shape[1]):
        wanted = (
            torch.ones(len(x), dtype=torch.bool) if farthest is None else near.bounds[:, column] <= farthest
        )
        if own is not None:
            wanted &= ~itself[:, column]
        for some in torch.nonzero(wanted).flatten().split(_AT_ONCE):
            difference = x[some].double() - y[near.rows[some, column]].double()
            exact[some, column] = difference.square().sum(dim=1)
        if column + 1 >= k + (own is not None):
            farthest = exact.kthvalue(k, dim=1).values * (1 + _slack(x))
    rows, by_row = near.rows.sort(dim=1)  # so that a stable sort leaves equal distances to the lower row
    squared, order = exact.gather(1, by_row).sqrt().sort(dim=1, stable=True)
    proved = squared[:, k - 1].square() * (1 + _slack(x)) < near.beyond
    return squared[:, :k], rows.gather(1, order)[:, :k], proved


def _slack(x: torch.Tensor) -> float:
    """Return what float64 may round a squared distance by, and its root and square: F + 8 roundings."""
    return 2 * (x.shape[1] + 8) * torch.finfo(torch.float64).eps


def _nearest_in_double(
    x: torch.Tensor, own: torch.Tensor | None, y: torch.Tensor, k: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    found = [
        _nearest_rows(rows.double(), None if own is None else own[first : first + chunk], y, k, chunk)
        for first, rows in _blocks(x, chunk)
    ]
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _blocks(x: torch.Tensor, chunk: int) -> Iterator[tuple[int, torch.Tensor]]:
    for first in range(0, len(x), chunk):
        yield first, x[first : first + chunk]


def _nearest_rows(
    x: torch.Tensor, own: torch.Tensor | None, training: torch.Tensor, k: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and rows [m, k] for x [m, F], which are the rows `own` [m] of `training`."""
    squared = torch.empty(len(x), 0, dtype=x.dtype, device=x.device)
    rows = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for first, block in _blocks(training, chunk):
        y = block.to(x.device).double()
        near = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T  # [m, n]
        here = torch.arange(first, first + len(y), device=x.device)
        squared, rows = torch.cat([squared, near], dim=1), torch.cat([rows, here.expand(len(x), -1)], dim=1)
        squared, order = squared.topk(min(k + _SPARE, squared.shape[1]), dim=1, largest=False)
        rows = rows.gather(1, order)
    rows = rows.sort(dim=1).values  # so that a stable sort leaves equal distances to the lower row
    exact = torch.stack(
        [(x - training[column.to(training.device)].to(x)).square().sum(dim=1).sqrt() for column in rows.T],
        dim=1,
    )
    if own is not None:  # costs one candidate, of which there are more than enough
        exact.masked_fill_(own.to(x.device)[:, None] == rows, torch.inf)
    distances, order = exact.sort(dim=1, stable=True)
    return distances[:, :k].cpu(), rows.gather(1, order)[:, :k].cpu()


def identical_images(samples: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Return for each sample the first training image with the same pixels, or -1: int64 [M].

    Takes digests of the pixels, uint8 [M, D] and [N, D]. Unlike a distance of 0 between features, which
    images that a network cannot tell apart have too, this means copies.
    """
    for digests in (samples, training):
        if digests.ndim != 2 or digests.dtype != torch.uint8:
            raise UserInputError(f"digests must be uint8 [N, D], got {digests.dtype} {list(digests.shape)}")
    first: dict[bytes, int] = {}
    for row, digest in enumerate(training.cpu().numpy()):
        first.setdefault(digest.tobytes(), row)
    return torch.tensor([first.get(digest.tobytes(), -1) for digest in samples.cpu().numpy()]).long()


def most_suspicious(distances: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rows of the `count` smallest nearest distances [M] or [M, k], closest first."""
    nearest_first = distances if distances.ndim == 1 else distances[:, 0]
    return nearest_first.sort(stable=True).indices[:count]


def nearest_figure(
    sample_image: Callable[[int], Any],
    training_image: Callable[[int], Any],
    distances: torch.Tensor,
    indices: torch.Tensor,
    path: Path,
    *,
    extractor: str,
    threshold: float | None = None,
    rows: int = 8,
) -> None:
    """Draw the most suspicious samples, each with its nearest training images, as PNG.

    `distances` and `indices` [M, k] are what `nearest` returns; the two functions return an image by its
    row: uint8 [H, W, C] array with 1 or 3 channels, of any size. Distances below `threshold` are marked.
    Raises UserInputError for no samples or images of another kind, StorageError.
    """
    if distances.ndim != 2 or distances.shape != indices.shape or min(*distances.shape, rows) < 1:
        raise UserInputError(
            f"picture of nearest images: distances {list(distances.shape)}, indices {list(indices.shape)}, "
            f"{rows} rows; give the two [M, k] of `nearest` and 1 row or more"
        )
    shown, k = most_suspicious(distances, rows).tolist(), distances.shape[1]
    heading = (
        f"{len(shown)} of {len(distances)} samples: the nearest to training images, {extractor} features"
    )
    if threshold is not None:
        heading += f"\n▸ closer than the threshold, {threshold:.4g}"
    with drawing():
        figure = new_figure(max(6.4, 1.2 * (k + 1)), 0.7 + 1.45 * len(shown))
        grid = figure.subplots(len(shown), k + 1, squeeze=False)
        for line, sample in zip(grid, shown, strict=True):
            _draw_image(line[0], sample_image(sample), f"sample {sample}", INK)
            for axes, distance, row in zip(
                line[1:], distances[sample], indices[sample].tolist(), strict=True
            ):
                close = threshold is not None and float(distance) < threshold
                caption = f"training {int(row)}\n{'▸ ' if close else ''}distance {float(distance):.4g}"
                _draw_image(axes, training_image(int(row)), caption, ALARM if close else INK)
        figure.suptitle(heading)
        save_png(figure, path)


def _draw_image(axes: Axes, image: Any, caption: str, colour: str) -> None:
    import numpy as np

    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise UserInputError(
            f"{caption.splitlines()[0]}: images must be uint8 [H, W, C] with 1 or 3 channels, "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    axes.imshow(rgb, interpolation="nearest" if max(pixels.shape) < 128 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=colour, linewidth=1.6 if colour == ALARM else 0.6)
    axes.set_xlabel(caption, color=colour)
