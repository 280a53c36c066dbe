"""What every metric demands of the features it is given: a matrix, enough rows, finite numbers."""

from __future__ import annotations

import torch

from attnbench.errors import NonFiniteError, UserInputError

ROWS_AT_A_TIME = 4096


def check_features(x: torch.Tensor, what: str = "features", *, at_least: int) -> None:
    """Check that `x` is a finite float [N, F] with N >= `at_least`.

    Raises UserInputError on a wrong shape or too few rows, NonFiniteError on NaN or infinity.
    """
    if x.ndim != 2 or len(x) < at_least:
        raise UserInputError(f"{what} must be [N, F] with N >= {at_least}, got {list(x.shape)}")
    # a few rows at a time: the mask of 50,000 x 2048 numbers is a tenth of a gigabyte
    finite = torch.cat([rows.isfinite().all(dim=1) for rows in x.split(ROWS_AT_A_TIME)])
    if not finite.all():
        raise NonFiniteError(
            f"{int((~finite).sum())} of {len(x)} images have NaN or infinite {what}; "
            f"the first is image {int((~finite).nonzero()[0])}: look at it and at the feature network"
        )


def check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    """Check two sets of features [N, F] and [M, F]; raises as `check_features`, also for unequal widths."""
    check_features(a, at_least=2)
    check_features(b, at_least=2)
    if a.shape[1] != b.shape[1]:
        raise UserInputError(
            f"two sets of features must have one width, got {a.shape[1]} and {b.shape[1]}; "
            "extract both with the same network"
        )
