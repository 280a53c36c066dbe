"""Noise, labels and seeds as pure functions of (seed, sample index, step).

Nothing here keeps a state: batch size, order, worker count and resume cannot change a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a 63-bit seed for one purpose at one position, e.g. `derive_seed(0, "train", step)`."""
    return _digest(seed, purpose, *position) >> 65


class Noise(Protocol):
    """Standard normal noise of a batch of samples, a pure function of (seed, purpose, index, step)."""

    def at(self, step: int) -> torch.Tensor:
        """Return the noise of one step, [B, *shape] fp32, on the device it is for."""
        ...


@dataclass(frozen=True, kw_only=True)
class KeyedNoise:
    """Standard normal noise by NumPy's ziggurat, one sample after the other on the CPU.

    For held-out losses and diagnoses, whose stored numbers were measured with it, and for samples begun with
    it (`sample.noise: ziggurat`); `box_muller` has what samples are drawn with today.

    Philox is counter-based: a sample's index and step *are* its position in the stream, so no two
    samples can share noise. (Seeding one `torch.Generator` per sample would be no such promise: its
    CPU engine keeps 32 bits of the seed, and 50,000 samples then expect a collision every few sets.)
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """

    seed: int
    indices: Sequence[int]
    shape: tuple[int, ...]
    device: torch.device
    purpose: str = "sample"

    def at(self, step: int) -> torch.Tensor:
        """Return the noise of one sampling step, [B, *shape] fp32, drawn on the CPU and then moved."""
        drawn = np.empty((len(self.indices), *self.shape), dtype=np.float32)
        streams = _streams(_digest(self.seed, self.purpose), self.indices, step)
        for row, stream in zip(drawn, streams, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        noise = torch.from_numpy(drawn)
        if self.device.type != "cuda":
            return noise.to(self.device)
        return noise.pin_memory().to(self.device, non_blocking=True)  # or it waits for what the GPU has to do


def keyed_labels(seed: int, indices: Sequence[int], num_classes: int) -> torch.Tensor:
    """Return a uniformly drawn class of each sample, int64 [n], each keyed by its own index."""
    streams = _streams(_digest(seed, "labels"), indices, step=0)
    return torch.tensor([int(stream.integers(num_classes)) for stream in streams], dtype=torch.int64)


def _streams(key: int, indices: Iterable[int], step: int) -> Iterator[np.random.Generator]:
    """Yield the stream of each index: one generator, moved when the next is asked for.

    A new Philox for each would add a fifth to the time of drawing a latent's noise.
    """
    philox = np.random.Philox(key=key)
    stream, state = np.random.Generator(philox), philox.state  # a copy, before anything is drawn
    # The lowest of the four counter words advances while drawing; the others name the stream.
    counter = state["state"]["counter"]
    counter[2] = step
    for index in indices:
        counter[1] = index
        philox.state = state
        yield stream


def _digest(seed: int, purpose: str, *position: int) -> int:
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream_key(seed: int, purpose: str) -> tuple[int, int]:
    """Return the two 64-bit words of the key under which noise for one purpose is drawn."""
    key = _digest(seed, purpose)
    return key & 0xFFFFFFFFFFFFFFFF, key >> 64


def fork_rng(device: torch.device) -> Any:
    """Return a context that leaves torch's global generators as it found them."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
