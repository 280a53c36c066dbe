"""Finding the layer behind a NaN: one step is run again with every layer watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from attnbench.errors import NonFiniteError
from attnbench.stages.training.over_processes import MeanOverProcesses
from attnbench.stages.training.sharding import whole


class _Witness:
    """Remembers the first layer whose output, and the first whose gradient, was not finite."""

    def __init__(self) -> None:
        self.output: str | None = None
        self.gradient: str | None = None

    def see_output(self, layer: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.output is None and not all(map(_is_finite, _tensors(output))):
            self.output = layer

    def see_gradient(self, parameter: str, gradient: torch.Tensor) -> None:
        if self.gradient is None and not _is_finite(gradient):
            self.gradient = parameter


def explain_nonfinite(
    model: nn.Module, run_again: Sequence[Callable[[], torch.Tensor]], step: int
) -> NonFiniteError:
    """Return the error that names the guilty layer of training step `step`.

    Each of `run_again` must repeat the forward pass of one micro-batch bit for bit and return its loss; the
    first guilty one is told. The forward pass is judged first; the backward pass, which reaches the last
    layers first, only if the forward was clean. A weight that is itself not finite comes before both.
    """
    where = _bad_weight(model)
    for run in run_again:
        where = where or _bad_layer(model, run)
    where = where or (
        "loss or gradients were not finite, but the same step run again was clean: it is not repeatable"
    )
    return NonFiniteError(
        f"training step {step}: {where}; lower train.lr, set train.grad_clip (1.0 is usual), or use "
        "train.precision: fp32. The last checkpoint is kept; changed settings train from the start"
    )


def _bad_weight(model: nn.Module) -> str | None:
    for name, tensor in model.named_parameters():
        if not _is_finite(whole(tensor)):
            return f"the weight {name} is not finite before the step"
    return None


def _bad_layer(model: nn.Module, run_again: Callable[[], torch.Tensor]) -> str | None:
    model.zero_grad()
    with _watched(model) as witness:
        loss = run_again()
        if witness.output is not None:
            return f"the first output that is not finite comes out of layer {witness.output}"
        if not _is_finite(loss):
            return "every layer's output is finite, but the loss (or an auxiliary loss) is not"
        loss.backward()
    for name, parameter in reversed(list(model.named_parameters())):  # gradients in shards call no hook
        if parameter.grad is not None:
            witness.see_gradient(name, whole(parameter.grad))
    model.zero_grad()
    if witness.gradient is not None:
        layer = witness.gradient.rpartition(".")[0] or "the model itself"
        return (
            "the forward pass is finite, but the backward pass first leaves the finite numbers at layer "
            f"{layer} (gradient of {witness.gradient})"
        )
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Witness]:
    witness = _Witness()
    handles: list[Any] = [
        module.register_forward_hook(partial(witness.see_output, name))
        for name, module in model.named_modules()
        if name and not isinstance(module, MeanOverProcesses)  # ours, between the layers
    ]
    handles += [
        parameter.register_hook(partial(witness.see_gradient, name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield witness
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
