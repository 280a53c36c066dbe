"""The smallest few values of each row and the columns they are of, from blocks of columns."""

from __future__ import annotations

import torch

CROWDED = 2  # as many times what is kept in some row: selecting in the whole block is as fast


def merge_smallest(
    kept: torch.Tensor, names: torch.Tensor, rows: slice, first: int, values: torch.Tensor
) -> None:
    """Merge a block of values [r, n], of the columns `first` onwards, into the smallest of each row.

    In place in `kept` [m, k] and `names` int64 [m, k], which begin with infinities. Only what is below the
    largest kept value of its row is looked at: in the b-th of equal blocks some k / b values of a row.
    """
    width, limits = values.shape[1], kept[rows].amax(dim=1, keepdim=True)
    places = torch.empty(0, dtype=torch.int64)
    few = bool(limits.isfinite().all())
    if few:
        places = torch.nonzero((values < limits).flatten()).flatten()
        counts = torch.bincount(places // width, minlength=len(values))
        few = int(counts.max()) < CROWDED * kept.shape[1]
    if few and len(places) == 0:
        return
    if few:
        row = places // width
        number = torch.arange(len(places), device=places.device) - (counts.cumsum(dim=0) - counts)[row]
        new = values.new_full((len(values), int(counts.max())), torch.inf)
        new[row, number] = values.flatten()[places]
        columns = torch.zeros_like(new, dtype=torch.int64)
        columns[row, number] = places % width + first
    else:
        found = values.topk(min(kept.shape[1], width), dim=1, largest=False, sorted=False)
        new, columns = found.values, found.indices + first
    both, both_names = torch.cat([kept[rows], new], dim=1), torch.cat([names[rows], columns], dim=1)
    chosen = both.topk(kept.shape[1], dim=1, largest=False, sorted=False)
    kept[rows] = chosen.values
    names[rows] = both_names.gather(1, chosen.indices)
