"""Philox4x64-10, the counter-based generator: four 64-bit words are a function of a counter and a key.

Twice the same function: with torch operations on any device, and by NumPy's generator of that name, which is
the quickest on a CPU. Words are the same to the bit.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.1 (Random123).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

WORDS = 4  # of a counter, and of what comes of it
ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # golden ratio, sqrt(3) - 1: added to the key each round
_LOW = 0xFFFFFFFF
_MASK = 0xFFFFFFFFFFFFFFFF


def philox4x64(counter: Sequence[torch.Tensor | int], key: tuple[int, int]) -> torch.Tensor:
    """Return the words of counters, int64 [4, ...]: the bits of what are unsigned numbers.

    `counter` are four words, int64 tensors [...] that broadcast, or integers; `key` two unsigned ones. About
    two hundred elementwise operations without a branch, so that they can be compiled into one kernel.
    """
    words = _broadcast(counter)
    even, odd = torch.stack([words[0], words[2]]), [words[1], words[3]]
    column = (1,) * (even.dim() - 1)
    # filled where they are used: a copy from the host would wait for the device
    factors = torch.stack([torch.full(column, signed(word), device=even.device) for word in _MULTIPLIERS])
    halves = factors & _LOW, _upper(factors)
    for number in range(ROUNDS):
        high, low = _high_product(even, halves), even * factors
        keys = [signed((word + number * step) & _MASK) for word, step in zip(key, _WEYL, strict=True)]
        even = torch.stack([high[1] ^ odd[0] ^ keys[0], high[0] ^ odd[1] ^ keys[1]])
        odd = [low[1], low[0]]
    return torch.stack([even[0], odd[0], even[1], odd[1]])


def _broadcast(counter: Sequence[torch.Tensor | int]) -> Sequence[torch.Tensor]:
    device = next((word.device for word in counter if isinstance(word, torch.Tensor)), None)
    words = [
        word if isinstance(word, torch.Tensor) else torch.full((), signed(word), device=device)
        for word in counter
    ]
    return torch.broadcast_tensors(*words)


def _high_product(words: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the upper 64 bits of 64 x 64-bit products, by halves: no sum below exceeds 64 bits.

    int64 wraps around as unsigned numbers do; only shifts must be told apart. Source: Knuth, The Art of
    Computer Programming 2, section 4.3.1, algorithm M.
    """
    low, high = words & _LOW, _upper(words)
    factor_low, factor_high = factors
    middle = high * factor_low + _upper(low * factor_low)
    carried = low * factor_high + (middle & _LOW)
    return high * factor_high + _upper(middle) + _upper(carried)


def _upper(words: torch.Tensor) -> torch.Tensor:
    """Return the upper half of unsigned words; `>>` copies the sign downwards."""
    return (words >> 32) & _LOW


def signed(word: int) -> int:
    """Return the signed integer with the bits of an unsigned 64-bit one; raises OverflowError."""
    return int.from_bytes(word.to_bytes(8, "little"), "little", signed=True)


class PhiloxStream:
    """Consecutive counters of one key on the CPU, as unsigned words; a position is set, never inherited."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._philox = np.random.Philox(key=key[0] | key[1] << 64)
        self._state: Any = self._philox.state
        self._counter = self._state["state"]["counter"]

    def words(self, counter: Sequence[int], count: int) -> np.ndarray:
        """Return the words of `count` counters, uint64 [count * 4]: `counter`, and on in its first word.

        The first of them must not be 0: NumPy adds one to a counter before it uses it. Raises OverflowError
        where a word has more than 64 bits.
        """
        first, *others = counter
        if first - 1 + count > _MASK:
            raise OverflowError(f"counters {first} to {first + count - 1} need more than 64 bits")
        self._counter[:] = [first - 1, *others]
        self._philox.state = self._state
        words: np.ndarray = self._philox.random_raw(count * WORDS)
        return words
