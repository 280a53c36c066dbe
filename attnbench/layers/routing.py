"""What routers need beside their argmax: logits that are cheap for few choices, and surrogate gradients."""

from __future__ import annotations

from typing import Any

import torch

from attnbench.layers.row_blocks import by_blocks, row_blocks, scratch


def router_logits(weight: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of every token in at least fp32: weight [C, n], inputs [T, C_i] -> [n, T].

    Several inputs are what a router sees of a token side by side, sum C_i = C: the product with their
    concatenation, which is never made. Choices come first, since products with a handful of columns take
    several times as long as with a handful of rows; a softmax over the last axis does so, too.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (weight, *inputs)):
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


def straight_through(value: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return value [T] as it is, with the gradient of a softmax over values [n] for logits [n, T]."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return _StraightThrough.apply(value, logits, values.detach())
    return value


class _StraightThrough(torch.autograd.Function):
    """value + soft - stopgrad(soft), of which only the gradient is left to compute."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, values)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of soft = sum_i p_i v_i the gradient for logit i is p_i (v_i - soft)."""
        logits, values = ctx.saved_tensors
        values = values.to(logits.dtype)[:, None]
        p = logits.softmax(0)
        soft = (p * values).sum(0)
        return grad, p.mul_(values - soft).mul_(grad.to(logits.dtype)), None


def unit_gate(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return x [T, C] as it is, with the gradient of x p / stopgrad(p) for p [T]."""
    if torch.is_grad_enabled() and p.requires_grad:
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


def subtract_scaled(x: torch.Tensor, factor: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x - factor y in x's dtype; x and y [T, C], factor [T, 1]."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, factor, y)):
        return _SubtractScaled.apply(x, factor, y)
    return torch.addcmul(x, factor.to(x.dtype), y, value=-1)


class _SubtractScaled(torch.autograd.Function):
    """Its backward makes the gradient of y and of the factor in one pass over both."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factor, y)
        return torch.addcmul(x, factor.to(x.dtype), y, value=-1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        factor, y = ctx.saved_tensors
        dfactor = row_dot(grad, y).neg_().to(factor.dtype)
        return grad, dfactor, grad * factor.to(grad.dtype).neg()


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
