"""Where a transformer block spends: multiply-adds by what they are for, and times of nested scopes."""

from __future__ import annotations

from collections.abc import Iterable

from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import LATENCY, by_model, usable
from attnbench.results import Record


class BlockParts(Record):
    """Multiply-adds of one model's middle block at batch 1, all that executes."""

    model: str
    resolution: int
    projections: int
    """Of the attention: linear and convolution layers, routers and routed projections."""
    core: int
    """Of the attention: the matmuls between queries, keys and values."""
    feed_forward: int
    modulation: int
    """AdaLN's layer, and the convolution behind the block where the model has one."""

    @property
    def total(self) -> int:
        """The whole block."""
        return self.projections + self.core + self.feed_forward + self.modulation


class BlockTimes(Record):
    """Times of one model's middle block, medians in ms: norms and modulation are in the rest."""

    model: str
    resolution: int
    attention_ms: float
    rest_ms: float
    """Of the block beside its attention."""


def block_times(rows: Iterable[ProfileRow]) -> list[BlockTimes]:
    """Return what rows of scopes `attention` and `block` say together, of rows of one setting but for these.

    A pair with a failed or disturbed row, or an attention that took longer than its block, says nothing.
    """
    kept = list(rows)
    by_scope = {
        scope: by_model(usable([row for row in kept if row.scope == scope], LATENCY)[0])
        for scope in ("attention", "block")
    }
    found = []
    for model, blocks in by_scope["block"].items():
        attention = {row.resolution: row.latency_ms for row in by_scope["attention"].get(model, [])}
        for row in blocks:
            inner, whole = attention.get(row.resolution), row.latency_ms
            if inner is not None and whole is not None and inner <= whole:
                found.append(
                    BlockTimes(
                        model=model, resolution=row.resolution, attention_ms=inner, rest_ms=whole - inner
                    )
                )
    return found
