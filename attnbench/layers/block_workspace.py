"""Memory for a computation on one block of tokens at a time, and how long a block is."""

from __future__ import annotations

import math

import torch

BLOCK_ELEMENTS = {torch.bfloat16: 1 << 19}
"""Elements of a block's widest operand, here 1 MiB, a core's second-level cache."""
OTHER_ELEMENTS = 1 << 18  # 1 MiB in fp32
SHORTEST_BLOCK = 128  # tokens: below, calls and short products cost more than the cache saves


def block_length(tokens: int, width: int, dtype: torch.dtype) -> int:
    """Return the length of blocks about as long as each other, a multiple of 32 tokens.

    `width` is that of a token with all its heads: blocks are of whole rows, since a group of heads is read in
    pieces that the processor does not fetch ahead.

    >>> [block_length(tokens, 384, torch.float32) for tokens in (1024, 4096)]
    [512, 608]
    >>> block_length(1024, 2240, torch.float32), block_length(1024, 2240, torch.bfloat16)
    (128, 224)
    """
    longest = max(SHORTEST_BLOCK, BLOCK_ELEMENTS.get(dtype, OTHER_ELEMENTS) // width)
    blocks = -(-tokens // longest)
    return -(-tokens // (32 * blocks)) * 32


class Workspace:
    """Rooms for blocks [H, n, D] by name, in at least fp32: taken once, so no block pays for new pages."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like = like
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.half = self.dtype != like.dtype
        self._rooms: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[object, ...], torch.Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return room of a shape, contiguous, in at least fp32 if no type is said."""
        dtype = dtype or self.dtype
        key = (name, shape, dtype)
        if key not in self._views:
            size = math.prod(shape)
            room = self._rooms.get((name, dtype))
            if room is None or room.numel() < size:
                room = self._rooms[name, dtype] = self.like.new_empty(size, dtype=dtype)
            self._views[key] = room[:size].view(shape)
        return self._views[key]

    def load(
        self, name: str, block: torch.Tensor, dtype: torch.dtype | None = None, *, rectify: bool = False
    ) -> torch.Tensor:
        """Return a block in a type (at least fp32 if none is said) and rectified, contiguous.

        An fp32 block that is to stay as it is, is returned itself: the library reads its products' operands
        at any stride, but takes a half type's to a copy of its own, in a slower way.
        """
        if block.dtype == self.dtype and not rectify:
            return block
        room = self.room(name, block.shape, dtype).copy_(block)
        return room.clamp_min_(0) if rectify else room  # in two steps: a copy alone is quick at far strides
