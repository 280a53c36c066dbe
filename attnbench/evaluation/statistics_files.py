"""Statistics of real images without the images: mean and covariance in an npz, as other tools keep them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attnbench.errors import DataError
from attnbench.evaluation.npz_files import DAMAGED, IMAGES, array_shapes, damaged
from attnbench.metrics.gaussian import Statistics

NAMES = ("mu", "sigma")  # of pytorch-fid, clean-fid and ADM
SPATIAL_NAMES = ("mu_s", "sigma_s")  # of ADM
_MOST_ASYMMETRIC = 1e-3  # of the largest value: sums in float32 leave less, what is no covariance has more
_HOW = "save numpy.savez(path, mu=mean, sigma=covariance) of the features, [F] and [F, F]"


@dataclass(frozen=True, kw_only=True)
class StoredStatistics:
    """Gaussians of real images, of pooled and, in ADM's files, of spatial features; n is 0: not stated."""

    pooled: Statistics
    spatial: Statistics | None
    names: tuple[str, str]
    """What the file calls mean and covariance."""


def holds_statistics_alone(path: Path) -> bool:
    """Return whether a file is an npz with mean and covariance and without images; reads headers only.

    Raises DataError for a damaged file, and for one with a covariance whose mean is not clear.
    """
    return path.suffix.lower() == ".npz" and path.is_file() and _names_in(path) is not None


def read_statistics(path: Path) -> StoredStatistics:
    """Read a file of statistics; raises DataError where it is damaged or holds no mean and covariance."""
    names = _names_in(path)
    if names is None:
        raise DataError(f"{path} holds no mean and covariance; {_HOW}")
    wanted = (*names, *SPATIAL_NAMES) if set(SPATIAL_NAMES) <= set(array_shapes(path)) else names
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in wanted}
    except DAMAGED as error:
        raise damaged(path, error, "fetch it again") from error
    spatial = _checked(path, arrays, SPATIAL_NAMES) if SPATIAL_NAMES[0] in arrays else None
    return StoredStatistics(pooled=_checked(path, arrays, names), spatial=spatial, names=names)


def _names_in(path: Path) -> tuple[str, str] | None:
    """Return the names of mean and covariance, None where there are images or no covariance."""
    shapes = array_shapes(path)
    if len(shapes.get(IMAGES, ())) > 2:
        return None
    if set(NAMES) <= set(shapes):
        return NAMES
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == shape[1] > 1]
    vectors = [name for name, shape in shapes.items() if len(shape) == 1 and shape[0] > 1]
    if not matrices:
        return None
    if len(matrices) == len(vectors) == 1 and shapes[matrices[0]] == shapes[vectors[0]] * 2:
        return vectors[0], matrices[0]
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise DataError(f"{path}: which of its arrays are mean and covariance is not clear: {found}; {_HOW}")


def _checked(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, str]) -> Statistics:
    mean, covariance = (arrays[name] for name in names)
    width = mean.shape[-1] if mean.ndim else 0
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or covariance.shape != (width, width):
        raise DataError(
            f"{path}: {names[0]} and {names[1]} are {mean.dtype} {list(mean.shape)} and {covariance.dtype} "
            f"{list(covariance.shape)}; they must be floating point [F] and [F, F]: {_HOW}"
        )
    if mean.shape != (width,) and mean.size != width:
        raise DataError(f"{path}: {names[0]} is {list(mean.shape)}; it must be one mean [F]: {_HOW}")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise DataError(f"{path}: {names[0]} or {names[1]} holds NaN or infinity; compute them again")
    uneven = float(np.abs(covariance - covariance.T).max())
    if uneven > _MOST_ASYMMETRIC * float(np.abs(covariance).max()) or (np.diagonal(covariance) < 0).any():
        raise DataError(
            f"{path}: {names[1]} is no covariance: not symmetric, or with a negative variance; {_HOW}"
        )
    return Statistics(
        mean=torch.from_numpy(mean.reshape(width)).double(),
        covariance=torch.from_numpy(covariance).double(),
        n=0,
    )
