"""Normal noise of many samples at once: counters to Philox's words, words to normals by Box and Muller.

A sample's noise is a function of (seed, purpose, index, step) and its shape. On a GPU it is made there, from
the same words: only the logarithm, sine and cosine are rounded by the device's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from attnbench.diffusion.noise import stream_key
from attnbench.diffusion.philox import WORDS, PhiloxStream, philox4x64

RADIUS, ANGLE = 0, 1  # a counter's third word: what its words are for
DRAWN_TOGETHER = 2**22  # normals on a GPU: so many that launching 250 kernels costs nothing beside them
_PER_BLOCK = 2 * WORDS  # 32-bit halves of one counter's words
_PAIRS_AT_ONCE = 2**15  # on the CPU: its arrays of 128 KiB stay in the second cache
_UNIT = 2.0**-32
_TURN = math.pi * 2.0**-31  # of one angle to the next


@dataclass(kw_only=True)
class BoxMullerNoise:
    """Standard normal noise of a batch of samples, each keyed by its own index.

    Counters of a batch are consecutive: pair p of sample i takes half p mod 8 of the counter
    `(1 + i * blocks + p // 8, step, RADIUS or ANGLE, blocks)`, where `blocks` = ceil(pairs / 8). So one call
    serves a whole batch, and any batch gets the same numbers, on one device to the bit. They reach 6.76 in
    size. Between a CPU and a GPU, or two kinds of CPU, they differ by at most 1e-6 of a pair's radius.
    `num_steps`: of so many steps, from 0 on, noise will be asked; several are drawn together.
    Raises OverflowError where a counter exceeds 64 bits.
    Source: Box and Muller 1958, "A note on the generation of random normal deviates".
    """

    seed: int
    indices: Sequence[int]
    shape: tuple[int, ...]
    device: torch.device
    purpose: str = "sample"
    num_steps: int = 1
    _ahead: tuple[range, torch.Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def at(self, step: int) -> torch.Tensor:
        """Return the noise of one sampling step, [B, *shape] fp32; on a GPU nothing waits for it."""
        if self._ahead is None or step not in self._ahead[0]:
            steps, self._ahead = self._together(step), None  # so that its memory serves again
            if self._by_numpy:
                drawn = torch.from_numpy(self._on_host(steps))
            else:
                drawn = draw(self._key, self._on_device, steps, self._count)
            self._ahead = steps, drawn.view(len(steps), len(self.indices), *self.shape)
        steps, several = self._ahead
        return several[step - steps.start]

    @property
    def _by_numpy(self) -> bool:
        return self.device.type == "cpu"

    def _together(self, step: int) -> range:
        """Return the steps that are drawn with one: from it on, as long as they are asked for and few."""
        most = 2 * _PAIRS_AT_ONCE if self._by_numpy else DRAWN_TOGETHER
        last = step + most // max(1, len(self.indices) * self._count)
        return range(step, max(step + 1, min(last, self.num_steps)))

    def _on_host(self, steps: range) -> np.ndarray:
        """Return the noise of some steps, [S * B, n] fp32."""
        drawn = np.empty((len(steps) * len(self.indices), self._count), dtype=np.float32)
        done = 0
        for pieces in self._pieces(steps):
            rows = sum(size for _, _, size in pieces)
            radius = _radius(
                self._words(pieces, RADIUS).view(np.uint32)
            )  # these words' memory serves the next
            angle = _angle(self._words(pieces, ANGLE).view(np.int32))
            _to_normals(radius, angle, drawn[done : done + rows])
            done += rows
        return drawn

    def _words(self, pieces: Sequence[tuple[int, int, int]], use: int) -> np.ndarray:
        blocks = _blocks(self._count)
        several = [
            self._stream.words((1 + index * blocks, step, use, blocks), size * blocks)
            for step, index, size in pieces
        ]
        return several[0] if len(several) == 1 else np.concatenate(several)

    def _pieces(self, steps: range) -> Iterator[list[tuple[int, int, int]]]:
        """Yield (step, first index, how many) of consecutive counters, so many as stay in the cache."""
        pieces: list[tuple[int, int, int]] = []
        rows = 0
        for step in steps:
            for index, size in self._runs:
                if pieces and rows + size > self._most:
                    yield pieces
                    pieces, rows = [], 0
                pieces.append((step, index, size))
                rows += size
        if pieces:
            yield pieces

    @cached_property
    def _most(self) -> int:
        return max(1, _PAIRS_AT_ONCE // (_blocks(self._count) * _PER_BLOCK))

    @cached_property
    def _count(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _key(self) -> tuple[int, int]:
        return stream_key(self.seed, self.purpose)

    @cached_property
    def _stream(self) -> PhiloxStream:
        return PhiloxStream(self._key)

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        return list(_runs(self.indices, self._most))

    @cached_property
    def _on_device(self) -> torch.Tensor:
        if isinstance(self.indices, range):  # made there: a copy from the host would wait for the device
            return torch.arange(self.indices.start, self.indices.stop, self.indices.step, device=self.device)
        listed = torch.tensor(self.indices, dtype=torch.int64)
        if self.device.type == "cuda":
            listed = listed.pin_memory()
        return listed.to(self.device, non_blocking=True)


def draw(key: tuple[int, int], indices: torch.Tensor, steps: range, count: int) -> torch.Tensor:
    """Return the noise of several steps, [S, B, count] fp32, by torch where `indices` int64 [B] lie."""
    blocks, device = _blocks(count), indices.device
    first = 1 + indices[:, None] * blocks + torch.arange(blocks, device=device)  # [B, blocks]
    at = torch.arange(steps.start, steps.stop, device=device)[:, None, None]
    use = torch.arange(2, device=device)[:, None, None, None]
    words = philox4x64((first, at, use, blocks), key)  # [4, 2, S, B, blocks]
    halves = words.movedim(0, -1).contiguous().view(torch.int32).flatten(-2)  # [2, S, B, blocks * 8]
    uniform = ((halves[RADIUS].long() & 0xFFFFFFFF).float() + 0.5) * _UNIT
    radius, angle = torch.sqrt(-2 * torch.log(uniform)), halves[ANGLE].float() * _TURN
    pairs = _pairs(count)
    cosines, sines = radius * torch.cos(angle), radius * torch.sin(angle)
    return torch.cat([cosines[..., :pairs], sines[..., : count - pairs]], dim=-1)


def _radius(halves: np.ndarray) -> np.ndarray:
    """Return (-2 ln u)^(1/2), fp32, of halves h of words, uint32, where u = (h + 1/2) / 2^32: never 0."""
    values = halves.astype(np.float32)
    values += 0.5
    values *= _UNIT
    np.log(values, out=values)
    values *= -2
    np.sqrt(values, out=values)
    return values


def _angle(halves: np.ndarray) -> np.ndarray:
    """Return angles in [-pi, pi], fp32, of halves of words, int32."""
    values = halves.astype(np.float32)
    values *= _TURN
    return values


def _to_normals(radius: np.ndarray, angle: np.ndarray, drawn: np.ndarray) -> None:
    """Write normals [b, n] from fp32 [b * padded pairs]; a row is all cosines and then all sines."""
    size, count = drawn.shape
    pairs = _pairs(count)
    shares = np.cos(angle)
    np.sin(angle, out=angle)
    radius, shares, angle = (values.reshape(size, -1) for values in (radius, shares, angle))
    np.multiply(radius[:, :pairs], shares[:, :pairs], out=drawn[:, :pairs])
    np.multiply(radius[:, : count - pairs], angle[:, : count - pairs], out=drawn[:, pairs:])


def _pairs(count: int) -> int:
    return (count + 1) // 2


def _blocks(count: int) -> int:
    """Return how many counters the radii (or the angles) of a sample of `count` numbers take."""
    return -(-_pairs(count) // _PER_BLOCK)


def _runs(indices: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, how many) of consecutive indices, at most `most` at a time."""
    start = 0
    for stop in range(1, len(indices) + 1):
        ends = stop == len(indices) or indices[stop] != indices[stop - 1] + 1
        if ends or stop - start == most:
            yield indices[start], stop - start
            start = stop
