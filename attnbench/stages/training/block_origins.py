"""Which block of a shallower model each block of a deeper one comes from; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.errors import UserInputError
from attnbench.specs import GrowthSpec, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a block of the deeper model comes from: a block of the source, or None for a fresh one."""

    block: int | None
    is_new: bool


def origins_of_blocks(source: int, target: int, growth: GrowthSpec) -> list[Origin]:
    """Return the origin of each of `target` blocks; `source` is how many there are to start from.

    Raises UserInputError for depths that do not go together.

    >>> [origin.block for origin in origins_of_blocks(2, 5, GrowthSpec(strategy="cyclic"))]
    [0, 1, 0, 1, 0]
    >>> [origin.block for origin in origins_of_blocks(2, 4, GrowthSpec(strategy="expand"))]
    [0, 0, 1, 1]
    """
    reason = why_not_so_deep(source, target, growth)
    if reason is not None:
        raise UserInputError(reason)
    kept = growth.keep or source
    if growth.strategy == "expand":
        ratio = target // kept
        return [Origin(block=place // ratio, is_new=place % ratio > 0) for place in range(target)]
    fresh = growth.strategy == "preserve"
    return [
        Origin(block=None if fresh and place >= kept else place % kept, is_new=place >= kept)
        for place in range(target)
    ]


def block_origins(source: ModelConfig, target: ModelConfig, growth: GrowthSpec) -> list[Origin]:
    """Return the origin of each block of `target`; of decoupled models the encoder grows, the decoder moves.

    Raises UserInputError for depths that do not go together.
    """
    first = origins_of_blocks(source.encoder_depth, target.encoder_depth, growth)
    decoder = range(source.encoder_depth, source.depth)
    return [*first, *(Origin(block=block, is_new=False) for block in decoder)]


def why_not_so_deep(source: int, target: int, growth: GrowthSpec) -> str | None:
    """Return why a model of `target` blocks cannot grow out of `source`, and the way out; None if it can."""
    kept = growth.keep or source
    if kept > source:
        return f"growth.keep is {kept}, but the source has {source} blocks; set it to {source} or fewer"
    if target <= kept:
        return (
            f"depth {target} does not exceed the {kept} blocks that are kept of the source; choose a greater "
            "depth, or leave growth out for a model as deep as its source"
        )
    if growth.strategy == "expand" and target % kept:
        return (
            f"strategy expand needs a multiple of the {kept} blocks kept, got depth {target}; choose "
            f"{target // kept * kept + kept}, or strategy cyclic"
        )
    return None


def why_not_grown(source: ModelConfig, target: ModelConfig, growth: GrowthSpec) -> str | None:
    """Return why a model cannot grow out of a shallower one, by depth and by its blocks' attentions.

    Both with all options of their attentions written out. None where it can.
    """
    if source.decoupled != target.decoupled:
        return "decoupled differs between the two; only encoders grow, under a decoder of the same depth"
    reason = why_not_so_deep(source.encoder_depth, target.encoder_depth, growth)
    if reason is not None:
        return reason
    for place, origin in enumerate(block_origins(source, target, growth)):
        if origin.block is None:
            continue
        theirs, ours = source.attention_at(origin.block), target.attention_at(place)
        if (theirs.name, theirs.options) != (ours.name, ours.options):
            return (
                f"block {place} would start from block {origin.block} of the source, but its attention is "
                f"{ours.title}, there it is {theirs.title}; choose the source's attention, or make a folder "
                "of that depth with `attnbench transfer --growth` first"
            )
    return None


def promises_the_same(source: ModelConfig, growth: GrowthSpec) -> bool:
    """Return whether a grown model of the same parts computes at first what its source does."""
    return growth.identity and growth.keep in (None, source.encoder_depth)
