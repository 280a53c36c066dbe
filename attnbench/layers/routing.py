"""Choosing one of a few numbers for every token: hard choices, the gradients that train them, and their use.

Logits have the choices first, [n, T]: products with a handful of columns take several times as long as with a
handful of rows, and so does a softmax over the last axis of two.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from attnbench.layers.power_focus import power_focus
from attnbench.layers.precision import without_autocast
from attnbench.layers.routed_blocks import (
    DifferenceByBlocks,
    FocusByBlocks,
    difference,
    focus,
    surrogate,
)
from attnbench.layers.row_blocks import by_blocks, row_blocks, scratch

RouterTraining = Literal["frozen", "straight_through", "unit_gate", "switch"]


def routed_focus(
    z: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, training: RouterTraining
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return phi of z [T, C] with the gamma that a router chooses of values [n] for each row, and the index.

    weight is [C, n], index [T]; a gate of the router's training multiplies phi. Logits and maths in fp32
    (fp64 for fp64 input). Source: arXiv:2601.13683, eqs. 5-6.
    """
    if not _ungated(z, training):
        index, chosen, scale = select(router_logits(weight, z), values, training)
        y = power_focus(z, chosen)
        return y if scale is None else y * scale.to(y.dtype), index
    trains_router = training == "straight_through"
    if not trains_router:  # no edge of the graph leads to it, and nobody waits for its gradient
        weight = weight.detach()
    if _trains(z, weight, values):
        return FocusByBlocks.apply(z, weight, values, trains_router)
    with without_autocast(z):
        return focus(z, weight, values)[:2]


def routed_difference(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, training: RouterTraining
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x - lambda y with the lambda that a router chooses of values [n] for each row of both.

    x and y are [T, C], weight [2 C, n]; returns [T, C], the index [T] and lambda [T, 1] without its gate.
    Logits in fp32 (fp64 for fp64 input). Source: arXiv:2601.13683, eqs. 7-8.
    """
    if not _ungated(x, training):
        index, chosen, scale = select(router_logits(weight, x, y), values, training)
        factor = chosen if scale is None else chosen * scale
        return torch.addcmul(x, factor.to(x.dtype), y, value=-1), index, chosen
    trains_router = training == "straight_through"
    if not trains_router:
        weight = weight.detach()
    if _trains(x, y, weight, values):
        return DifferenceByBlocks.apply(x, y, weight, values, trains_router)
    with without_autocast(x):
        return difference(x, y, weight, values)[:3]


def _ungated(z: torch.Tensor, training: RouterTraining) -> bool:
    """Say whether one pass over blocks of rows does it all: on a CPU, where no gate stands between."""
    return by_blocks(z) and training in ("frozen", "straight_through")


def _trains(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def select(
    logits: torch.Tensor, values: torch.Tensor, training: RouterTraining
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Pick one scalar per token by argmax: logits [n, T], values [n].

    Returns (index [T], value [T, 1], gate [T, 1] or None); the gate multiplies whatever the choice
    produced: p_u / stopgrad(p_u) for `unit_gate`, p_u for `switch`. The value is the literal argmax's.
    """
    index = largest(logits)
    value = values[index]
    if training == "straight_through" and _trains(logits):
        value = _StraightThrough.apply(value, logits, values.detach())
    scale = None
    if training == "switch" or (training == "unit_gate" and logits.requires_grad):
        p = probability(logits, index)
        scale = (p if training == "switch" else p / p.detach()).unsqueeze(-1)
    return index, value.unsqueeze(-1), scale


def largest(logits: torch.Tensor) -> torch.Tensor:
    """Argmax over the choices, logits [n, T] -> [T]; `argmax` itself is slow over a first axis."""
    return logits.detach().max(0).indices


def probability(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the softmax's p_u of the chosen u: logits [n, T], index [T] -> [T]."""
    return logits.softmax(0).gather(0, index.unsqueeze(0)).squeeze(0)


def router_logits(weight: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of every token in at least fp32: weight [C, n], inputs [T, C_i] -> [n, T].

    Several inputs are what a router sees of a token side by side, sum C_i = C: the product with their
    concatenation, which is never made.
    """
    with without_autocast(inputs[0]):
        if _trains(weight, *inputs):
            return _RouterLogits.apply(weight, *inputs)
        return _logits(weight, inputs)


def _logits(weight: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    parts = [w.to(dtype).T for w in weight.split([z.shape[1] for z in inputs])]  # [n, C_i] each
    logits = parts[0] @ inputs[0].T.to(dtype)
    for part, z in zip(parts[1:], inputs[1:], strict=True):
        logits = torch.addmm(logits, part, z.T.to(dtype))
    return logits


class _RouterLogits(torch.autograd.Function):
    """Its backward keeps the inputs as they are, in half precision where they are, and returns rows."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, *inputs)
        return _logits(weight, inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        parts = weight.to(grad.dtype).split([z.shape[1] for z in inputs])
        dinputs = [
            (grad.T @ part.T.contiguous()).to(z.dtype) if needed else None
            for part, z, needed in zip(parts, inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        dweight = torch.cat([grad @ z.to(grad.dtype) for z in inputs], 1).T  # [C, n]
        return (dweight.to(weight.dtype), *dinputs)


class _StraightThrough(torch.autograd.Function):
    """value + soft - stopgrad(soft) with soft = softmax(logits) . values: its gradient is left to compute."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, values)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, values = ctx.saved_tensors
        return grad, surrogate(logits, values.to(logits.dtype), grad.to(logits.dtype)), None


def unit_gate(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return x [T, C] as it is, with the gradient of x p / stopgrad(p) for p [T]."""
    if _trains(p):
        return _UnitGate.apply(x, p)
    return x


class _UnitGate(torch.autograd.Function):
    """The factor p / stopgrad(p) is 1, so that nothing is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, p)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, p = ctx.saved_tensors
        return grad, (row_dot(grad, x)[:, 0].to(p.dtype) / p)


def row_dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the inner product of every row in at least fp32: [T, C] and [T, C] -> [T, 1]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not by_blocks(x):
        return (x.to(dtype) * y).sum(-1, keepdim=True)
    dot = x.new_empty(len(x), 1, dtype=dtype)
    (buffer,) = scratch(x, 1, dtype)
    for block in row_blocks(*x.shape):
        product = torch.mul(x[block], y[block], out=buffer[: len(dot[block])])
        torch.sum(product, -1, keepdim=True, out=dot[block])
    return dot
