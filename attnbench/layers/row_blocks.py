"""Elementwise work on a CPU in blocks of rows that stay in a core's cache, whole everywhere else."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_ELEMENTS = 2**18  # 1 MiB of fp32: a few such buffers stay in a processor's last cache


def by_blocks(x: torch.Tensor) -> bool:
    """Say whether to work on `x` in blocks: on a CPU, where operations run as they are called.

    Compilers and tracers fuse or count whole operations, and torch.func follows them: these see the formula.
    """
    return (
        x.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
    )


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices that divide `rows` rows of `width` elements.

    >>> list(row_blocks(3000, 128))
    [slice(0, 2048, None), slice(2048, 3000, None)]
    """
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scratch(x: torch.Tensor, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return so many buffers for a block of the rows of x [rows, width]; cut each to the block's length."""
    rows = min(x.shape[0], max(1, BLOCK_ELEMENTS // x.shape[1]))
    return list(x.new_empty(count, rows, x.shape[1], dtype=dtype).unbind())
