"""Routed projections: every token passes through the one matrix chosen for it, and only that one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from attnbench.layers.precision import compute_dtype

# grouped_mm needs strides that are multiples of 16 bytes; torch 2.11 has it private, 2.13 public
_grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def routed_projection(x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Project every token by its chosen matrices: y[t, j] = x[t] @ weight[expert[t, j]].

    x [T, C], weight [E, C, F], expert int64 [T, K] -> [T, K, F]. Costs T K C F multiply-adds
    whatever E is. Tokens are sorted by expert (stable) and multiplied group by group. Autocast
    applies as it does to a Linear layer. Source: arXiv:2601.13683, eq. 2.
    """
    dtype = compute_dtype(x)
    return _routed_projection(x.to(dtype), weight.to(dtype), expert)[0]


@torch.library.custom_op("attnbench::routed_projection", mutates_args=())
def _routed_projection(
    x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the projection, and what the backward pass would otherwise compute again."""
    order, place, ends = _group(expert, weight.shape[0])
    x_sorted = x.index_select(0, order // expert.shape[1])
    y = _rows_by_group(x_sorted, weight, ends).index_select(0, place)
    return y.view(*expert.shape, weight.shape[2]), x_sorted, order, place, ends


@torch.library.custom_op("attnbench::routed_projection_backward", mutates_args=())
def _routed_projection_backward(
    grad: torch.Tensor,
    weight: torch.Tensor,
    x_sorted: torch.Tensor,
    order: torch.Tensor,
    place: torch.Tensor,
    ends: torch.Tensor,
    choices: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    # the gather also makes a contiguous copy: grouped_mm refuses the stride 0 of an expanded gradient
    grad_sorted = grad.reshape(-1, grad.shape[-1]).index_select(0, order)
    dweight = _outer_by_group(x_sorted, grad_sorted, ends)
    dx_sorted = _rows_by_group(grad_sorted, weight.transpose(1, 2), ends)
    dx = dx_sorted.index_select(0, place[::choices])
    for choice in range(1, choices):  # K is 1 or 2: a few gathers beat a sum over a short axis
        dx += dx_sorted.index_select(0, place[choice::choices])
    return dx, dweight


def _group(expert: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the order that sorts the choices by expert, its inverse, and where each group ends."""
    chosen, order = expert.reshape(-1).sort(stable=True)
    place = torch.empty_like(order)
    place.scatter_(0, order, torch.arange(order.numel(), device=order.device))
    experts = torch.arange(num_experts, device=chosen.device)
    ends = torch.searchsorted(chosen, experts, right=True, out_int32=True)  # as grouped_mm wants them
    return order, place, ends


def _aligned(*tensors: torch.Tensor) -> bool:
    """Say whether grouped_mm takes these: no fp64, and strides of multiples of 16 bytes."""
    return all(
        t.dtype is not torch.float64
        and all(s == 1 or s * t.element_size() % 16 == 0 for s in t.stride())
        and (t.dtype is torch.bfloat16 or not t.is_cuda)
        for t in tensors
    )


def _rows_by_group(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply the rows of group e by weight[e]: [T, C], [E, C, F] -> [T, F]."""
    if _aligned(x, weight):
        return _grouped_mm(x, weight, offs=ends)
    parts = x.tensor_split(ends[:-1].long().cpu())
    return torch.cat([part @ matrix for part, matrix in zip(parts, weight, strict=True)])


def _outer_by_group(x: torch.Tensor, grad: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Sum x^T grad over the rows of each group: [T, C], [T, F] -> [E, C, F]."""
    if _aligned(x, grad):
        return _grouped_mm(x.T, grad, offs=ends)
    cuts = ends[:-1].long().cpu()
    pairs = zip(x.tensor_split(cuts), grad.tensor_split(cuts), strict=True)
    return torch.stack([a.T @ b for a, b in pairs])


@_routed_projection.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = expert.new_empty(expert.numel())
    y = x.new_empty(*expert.shape, weight.shape[2])
    x_sorted = x.new_empty(expert.numel(), x.shape[1])
    return y, x_sorted, rows, torch.empty_like(rows), rows.new_empty(weight.shape[0], dtype=torch.int32)


@_routed_projection_backward.register_fake
def _(
    grad: torch.Tensor,
    weight: torch.Tensor,
    x_sorted: torch.Tensor,
    order: torch.Tensor,
    place: torch.Tensor,
    ends: torch.Tensor,
    choices: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x_sorted.new_empty(x_sorted.shape[0] // choices, x_sorted.shape[1]), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, weight, expert = inputs
    _, x_sorted, order, place, ends = output
    ctx.save_for_backward(weight, x_sorted, order, place, ends)
    ctx.mark_non_differentiable(order, place, ends)
    ctx.choices = expert.shape[1]
    # else autograd fills a zero gradient for x_sorted, as large as x, that nobody reads
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return None, None, None
    return (*_routed_projection_backward(grad, *ctx.saved_tensors, ctx.choices), None)


_routed_projection.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.attnbench.routed_projection)
def _forward_flops(x: Any, weight: Any, expert: Any, *_: Any, **__: Any) -> int:
    """Two per multiply-add, as torch's counter wants it."""
    tokens, choices = expert
    return 2 * tokens * choices * weight[1] * weight[2]


@register_flop_formula(torch.ops.attnbench.routed_projection_backward)
def _backward_flops(grad: Any, weight: Any, x_sorted: Any, *_: Any, **__: Any) -> int:
    return 2 * 2 * x_sorted[0] * weight[1] * weight[2]
