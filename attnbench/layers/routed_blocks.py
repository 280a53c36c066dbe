"""On a CPU: a router and what its choice is for, in one pass over blocks of rows, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from attnbench.layers.power_focus import focus_block, focus_block_backward, row_scalars
from attnbench.layers.precision import without_autocast
from attnbench.layers.row_blocks import row_blocks, scratch


class FocusByBlocks(torch.autograd.Function):
    """phi of z [T, C] with the gamma that a router chooses of `values` for each row; returns (y, index)."""

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, trains_router: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with without_autocast(z):
            y, index, logits, scalars = focus(z, weight, values)
        ctx.save_for_backward(z, weight, values, logits, scalars, index)
        ctx.trains_router = trains_router
        ctx.mark_non_differentiable(index)
        return y, index

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        z, weight, values, logits, scalars, index = ctx.saved_tensors
        dtype, dz = logits.dtype, torch.empty_like(z, memory_format=torch.contiguous_format)
        matrix, dmatrix = weight.to(dtype).T.contiguous(), logits.new_zeros(weight.shape[::-1])  # [n, C]
        numbers, dchosen = values.to(dtype), logits.new_empty(len(z))
        buffers = scratch(z, 6, dtype)
        with without_autocast(z):
            for block in row_blocks(*z.shape):
                rows, g, out = _as(dtype, z[block], buffers[4]), grad[block], dz[block]
                if dz.dtype != dtype:
                    out = buffers[5][: len(rows)]
                gamma = numbers[index[block]].unsqueeze(1)
                found = focus_block_backward(g, rows, gamma, scalars[:, block], buffers, out)
                dchosen[block] = found.squeeze(1)
                if ctx.trains_router:
                    dlogits = surrogate(logits[:, block], numbers, dchosen[block])
                    out.addmm_(dlogits.T, matrix)
                    dmatrix.addmm_(dlogits, rows)
                if out.dtype != dz.dtype:
                    dz[block] = out
        dvalues = torch.zeros_like(numbers).index_add_(0, index, dchosen).to(values.dtype)
        return dz, dmatrix.T.to(weight.dtype) if ctx.trains_router else None, dvalues, None


def focus(
    z: torch.Tensor, weight: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y [T, C], index [T], logits [n, T] and the rows' scalars."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    y, scalars = torch.empty_like(z, memory_format=torch.contiguous_format), row_scalars(z, dtype)
    logits, index = z.new_empty(weight.shape[1], len(z), dtype=dtype), z.new_empty(len(z), dtype=torch.long)
    matrix, numbers, buffers = weight.to(dtype).T.contiguous(), values.to(dtype), scratch(z, 3, dtype)
    for block in row_blocks(*z.shape):
        rows = _as(dtype, z[block], buffers[2])
        torch.mm(matrix, rows.T, out=logits[:, block])
        index[block] = logits[:, block].max(0).indices
        gamma = numbers[index[block]].unsqueeze(1)
        focus_block(rows, gamma, scalars[:, block], buffers, y[block])
    return y, index, logits, scalars


class DifferenceByBlocks(torch.autograd.Function):
    """x - lambda y [T, C] with the lambda that a router chooses for each row of both; (d, index, lambda)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor,
        trains_router: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with without_autocast(x):
            d, index, chosen, logits = difference(x, y, weight, values)
        ctx.save_for_backward(x, y, weight, values, logits, index)
        ctx.trains_router = trains_router
        ctx.mark_non_differentiable(index, chosen)
        return d, index, chosen

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, y, weight, values, logits, index = ctx.saved_tensors
        dtype, width = logits.dtype, x.shape[1]
        matrix, dmatrix = weight.to(dtype).T.contiguous(), logits.new_zeros(weight.shape[::-1])  # [n, 2 C]
        dx = torch.empty_like(grad) if ctx.trains_router else grad
        dy, numbers, dchosen = torch.empty_like(y), values.to(dtype), logits.new_empty(len(x))
        buffers = scratch(x, 4, dtype)
        with without_autocast(x):
            for block in row_blocks(*x.shape):
                parts = (grad[block], x[block], y[block])
                g, first, second = (_as(dtype, t, b) for t, b in zip(parts, buffers, strict=False))
                work = buffers[3][: len(g)]
                torch.sum(torch.mul(g, second, out=work), -1, out=dchosen[block]).neg_()
                torch.mul(g, numbers[index[block]].neg_().unsqueeze(1), out=work)
                if ctx.trains_router:
                    dlogits = surrogate(logits[:, block], numbers, dchosen[block])
                    work.addmm_(dlogits.T, matrix[:, width:])
                    dmatrix[:, :width].addmm_(dlogits, first)
                    dmatrix[:, width:].addmm_(dlogits, second)
                    dx[block] = torch.addmm(g, dlogits.T, matrix[:, :width])
                dy[block] = work
        dvalues = torch.zeros_like(numbers).index_add_(0, index, dchosen).to(values.dtype)
        return dx, dy, dmatrix.T.to(weight.dtype) if ctx.trains_router else None, dvalues, None


def difference(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return d [T, C], index [T], lambda [T, 1] and logits [n, T]."""
    dtype, width = torch.promote_types(x.dtype, torch.float32), x.shape[1]
    d, index = torch.empty_like(x), x.new_empty(len(x), dtype=torch.long)
    logits, buffers = x.new_empty(weight.shape[1], len(x), dtype=dtype), scratch(x, 2, dtype)
    matrix, numbers = weight.to(dtype).T.contiguous(), values.to(x.dtype)
    for block in row_blocks(*x.shape):
        first, second = (_as(dtype, t[block], b) for t, b in zip((x, y), buffers, strict=True))
        found = matrix[:, :width] @ first.T
        found.addmm_(matrix[:, width:], second.T)
        logits[:, block] = found
        index[block] = found.max(0).indices
        factor = numbers[index[block]].unsqueeze(1)
        torch.addcmul(x[block], factor, y[block], value=-1, out=d[block])
    return d, index, values[index].unsqueeze(1), logits


def surrogate(logits: torch.Tensor, values: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Return the gradient of logits [n, T] through soft = sum_i p_i v_i: p_i (v_i - soft) grad."""
    p, values = logits.softmax(0), values[:, None]
    return p.mul_(values - (p * values).sum(0)).mul_(grad)


def _as(dtype: torch.dtype, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Return x in a dtype, in a buffer where it is another."""
    return x if x.dtype == dtype else buffer[: len(x)].copy_(x)
