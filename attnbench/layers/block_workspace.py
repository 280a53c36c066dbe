"""Memory for a computation on one block of tokens at a time, and how long a block is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

BLOCK_BYTES = 1 << 19
"""Of the widest operand in a block, in its own type: half of a core's second-level cache of 1 MiB."""
SHORTEST_BLOCK = 128  # tokens: below, calls and short products cost more than the cache saves


def block_length(tokens: int, row_bytes: int) -> int:
    """Return the length of blocks about as long as each other, a multiple of 32 tokens.

    `row_bytes` are those of a token with all its heads: blocks are of whole rows, since a group of heads is
    read in pieces that the processor does not fetch ahead.

    >>> block_length(1024, 4 * 384), block_length(4096, 4 * 384), block_length(1024, 4 * 2240)
    (256, 320, 128)
    """
    blocks = -(-tokens // max(SHORTEST_BLOCK, BLOCK_BYTES // row_bytes))
    return -(-tokens // (32 * blocks)) * 32


class Workspace:
    """Rooms for blocks [H, n, D] by name, in at least fp32: taken once, so no block pays for new pages."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like = like
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.half = self.dtype != like.dtype
        self._rooms: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[object, ...], torch.Tensor] = {}

    def by_head(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return room [H, n, D] that is contiguous, as batched products want their result."""
        dtype = dtype or self.dtype
        key = (name, *shape, dtype)
        if key not in self._views:
            size = math.prod(shape)
            room = self._rooms.get((name, dtype))
            if room is None or room.numel() < size:
                room = self._rooms[name, dtype] = self.like.new_empty(size, dtype=dtype)
            self._views[key] = room[:size].view(*shape)
        return self._views[key]

    def by_token(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return room [H, n, D] that is a view of [n, H, D], as inputs and outputs lie."""
        key = (name, *shape)
        if key not in self._views:
            heads, tokens, width = shape
            self._views[key] = self.by_head(name, (tokens, heads, width)).transpose(0, 1)
        return self._views[key]

    def load(self, name: str, block: torch.Tensor, *, rectify: bool = False) -> torch.Tensor:
        """Return a block in at least fp32 and rectified; itself where nothing is to be done."""
        if block.dtype == self.dtype and not rectify:
            return block
        room = self.by_token(name, block.shape)
        if block.dtype == self.dtype:
            return torch.clamp_min(block, 0, out=room)
        room.copy_(block)
        return room.clamp_min_(0) if rectify else room

    def load_half(self, name: str, block: torch.Tensor, *, rectify: bool) -> torch.Tensor:
        """Return a block in its own half type, contiguous and rectified."""
        room = self.by_head(name, block.shape, block.dtype)
        return torch.clamp_min(block, 0, out=room) if rectify else room.copy_(block)
