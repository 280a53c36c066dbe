"""The moving average of a model's weights that is sampled from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from attnbench.stages.training.sharding import cut_like, own_part


class WeightAverage:
    """Exponential moving average of a model's parameters and floating buffers.

    BatchNorm statistics are averaged like weights: they must belong to the averaged weights. Buffers
    of other types are copied. With `warmup` the effective decay is `min(decay, (1 + step) / (10 + step))`,
    so that a short training is not averaged with its own initialisation; DiT has none. The average of
    weights in shards lies in the same shards.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        # Modules may replace a buffer by a new tensor, so tensors are looked up by owner each time.
        self._owners = {name: _owner(model, name) for name in model.state_dict()}
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._floating = [name for name, tensor in self._average.items() if tensor.is_floating_point()]
        self._average_floats = [own_part(self._average[name]) for name in self._floating]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live weights after optimizer step `step` (0 for the first)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(self._average_floats, self._live_floats(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged weights into the model for the block, the live ones in their place."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, live in zip(self._average_floats, self._live_floats(), strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights under the model's names."""
        for name, average in self._average.items():
            if not average.is_floating_point():
                average.copy_(self._live(name))
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take averaged weights over, in place."""
        for name, average in self._average.items():
            average.copy_(cut_like(state[name], average))

    def _live_floats(self) -> list[torch.Tensor]:
        return [own_part(self._live(name)) for name in self._floating]

    def _live(self, name: str) -> torch.Tensor:
        owner, attribute = self._owners[name]
        tensor: torch.Tensor = getattr(owner, attribute)
        return tensor


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute
