"""The norm-preserving power of focused linear attention and DyDiLA, and its closed-form backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch

from attnbench.layers.row_blocks import by_blocks, row_blocks, scratch

_NOTHING = -1e5
"""log2 of the zeros: finite, so that 0 times it is 0, and no power >= 1 of it is above zero in fp64."""


def power_focus(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Sharpen each row's direction by a power and keep its norm: phi of Eq. 5.

    phi(z) = u^gamma / ||u^gamma|| * ||u|| with u = ReLU(z), norms over the last axis.
    z is [..., C], gamma broadcasts against it (one scalar a row: [..., 1]) and must be >= 1.
    Maths in fp32 (fp64 for fp64 input), in the scale-free form a = u / max(u), so that it neither
    underflows on small rows nor divides 0 by 0 on an all-nonpositive row, where phi = 0.
    Source: arXiv:2601.13683, eq. 5; Flatten Transformer arXiv:2308.00442, eq. 5-6.
    """
    if torch.is_grad_enabled() and (z.requires_grad or gamma.requires_grad):
        return _PowerFocus.apply(z, gamma)
    return _forward(z, gamma)[0]


def _forward(z: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return phi(z), and per row what the backward pass needs: max u, |a|^2 and |p|^2 with p = a^gamma."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    rows, powers = z.reshape(-1, z.shape[-1]), _per_row(gamma, z, dtype)
    if by_blocks(z):
        y, peak, a_sq, power_sq = _forward_by_blocks(rows, powers)
    else:
        peak = rows.amax(-1, keepdim=True).to(dtype).clamp_min(torch.finfo(dtype).tiny)  # [rows, 1]
        a = (rows / peak).relu()  # in [0, 1]
        power = a.pow(powers)  # 0 ** gamma = 0 since gamma >= 1
        a_sq, power_sq = _square(a), _square(power)
        y = (power * (peak * (a_sq / power_sq).sqrt())).to(z.dtype)
    return y.view(z.shape), peak, a_sq, power_sq


def _per_row(gamma: torch.Tensor, z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return gamma as [rows, 1], or [1, 1] where it is the same for all rows."""
    if gamma.numel() == 1:
        return gamma.to(dtype).reshape(1, 1)
    return gamma.to(dtype).expand(*z.shape[:-1], 1).reshape(-1, 1)


def _square(x: torch.Tensor) -> torch.Tensor:
    """Return |x|^2 per row, and of a row without positive entries something to divide by."""
    return x.square().sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _block(gamma: torch.Tensor, block: slice) -> torch.Tensor:
    return gamma if gamma.shape[0] == 1 else gamma[block]


def _forward_by_blocks(z: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y, scalars = torch.empty_like(z, memory_format=torch.contiguous_format), row_scalars(z, gamma.dtype)
    buffers = scratch(z, 2, gamma.dtype)
    for block in row_blocks(*z.shape):
        focus_block(z[block], _block(gamma, block), scalars[:, block], buffers, y[block])
    return y, *scalars.unbind()


def row_scalars(z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return room for what phi's backward pass needs of every row: max u, |a|^2, |p|^2, [3, rows, 1]."""
    return z.new_empty(3, len(z), 1, dtype=dtype)


def focus_block(
    z: torch.Tensor,
    gamma: torch.Tensor,
    scalars: torch.Tensor,
    buffers: list[torch.Tensor],
    y: torch.Tensor,
) -> None:
    """Write phi of a few rows to y and to scalars [3, rows, 1], by way of two buffers."""
    peak, a_sq, power_sq = scalars.unbind()
    tiny = torch.finfo(peak.dtype).tiny
    a, power = (buffer[: len(z)] for buffer in buffers[:2])
    peak.copy_(z.amax(-1, keepdim=True)).clamp_min_(tiny)
    _logarithms(z, peak, a, power)
    power.mul_(gamma).exp2_()
    torch.linalg.vector_norm(a, dim=-1, keepdim=True, out=a_sq)
    torch.linalg.vector_norm(power, dim=-1, keepdim=True, out=power_sq)
    scale = a_sq / power_sq.clamp_min_(tiny)
    torch.mul(power, scale.mul_(peak), out=y)
    scalars[1:].square_().clamp_min_(tiny)


def _logarithms(z: torch.Tensor, peak: torch.Tensor, a: torch.Tensor, log: torch.Tensor) -> None:
    """Write a = u / max(u), with the smallest normal number in place of 0, and its log2.

    a^gamma = 2^(gamma log2 a) takes half the time of `pow`, and differs from it by gamma log2 a roundings,
    which is little where a^gamma is not. Where a is 0 the power is exactly 0, but not by way of log2 0,
    which is ten times slower than that of other numbers.
    """
    tiny = torch.finfo(a.dtype).tiny
    torch.div(z, peak, out=a).clamp_min_(tiny)
    torch.log2(a, out=log)
    torch.threshold_(log, math.log2(tiny) + 0.5, _NOTHING)


class _PowerFocus(torch.autograd.Function):
    """Closed-form backward: autograd keeps z, which its maker's backward keeps anyway, and row scalars."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        y, peak, a_sq, power_sq = _forward(z, gamma)
        ctx.save_for_backward(z, gamma, peak, a_sq, power_sq)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With p = a^gamma, (g.y) = sum_k g_k y_k and t_k = |a|/|p| g_k - p_k (g.y) / (peak |p|^2):

        dz_k = a_k (g.y) / (peak |a|^2) + gamma a_k^(gamma-1) t_k
        dgamma = peak sum_k p_k t_k log a_k   (the log peak terms of log u cancel)

        Where z_k <= 0, a_k and p_k are 0 and so are both terms: no mask is needed.
        """
        z, gamma, *scalars = ctx.saved_tensors
        rows, powers = z.reshape(-1, z.shape[-1]), _per_row(gamma, z, scalars[0].dtype)
        backward = _backward_by_blocks if by_blocks(z) else _backward
        dz, dgamma = backward(grad.reshape(-1, z.shape[-1]), rows, powers, *scalars)
        dgamma = dgamma.view(*z.shape[:-1], 1).sum_to_size(gamma.shape).to(gamma.dtype)
        return dz.view(z.shape), dgamma


def _backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    gamma: torch.Tensor,
    peak: torch.Tensor,
    a_sq: torch.Tensor,
    power_sq: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    a, g = (z / peak).relu(), grad.to(peak.dtype)
    power = a.pow(gamma)
    ratio = (a_sq / power_sq).sqrt()  # |a| / |p|
    g_dot_y = (g * power).sum(-1, keepdim=True) * ratio  # (g.y) / peak
    t = (g * ratio).addcmul_(power, g_dot_y / power_sq, value=-1).mul_(power)  # p_k t_k
    a_positive = a.clamp_min(torch.finfo(a.dtype).tiny)  # p / a is 0 / tiny on the zeros
    dz = (t / a_positive).mul_(gamma).addcmul_(a, g_dot_y / a_sq).to(z.dtype)
    return dz, peak * t.mul_(a_positive.log_()).sum(-1, keepdim=True)


def _backward_by_blocks(
    grad: torch.Tensor,
    z: torch.Tensor,
    gamma: torch.Tensor,
    peak: torch.Tensor,
    a_sq: torch.Tensor,
    power_sq: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    dz = torch.empty_like(z, memory_format=torch.contiguous_format)
    dgamma = torch.empty_like(peak)
    scalars, buffers = torch.stack([peak, a_sq, power_sq]), scratch(z, 4, gamma.dtype)
    for block in row_blocks(*z.shape):
        dgamma[block] = focus_block_backward(
            grad[block], z[block], _block(gamma, block), scalars[:, block], buffers, dz[block]
        )
    return dz, dgamma


def focus_block_backward(
    g: torch.Tensor,
    z: torch.Tensor,
    gamma: torch.Tensor,
    scalars: torch.Tensor,
    buffers: list[torch.Tensor],
    dz: torch.Tensor,
) -> torch.Tensor:
    """Write the gradient of a few rows of z to dz and return that of their gammas [rows, 1]."""
    peak, a_sq, power_sq = scalars.unbind()
    a, log, power, t = (buffer[: len(z)] for buffer in buffers[:4])
    ratio = (a_sq / power_sq).sqrt_()
    _logarithms(z, peak, a, log)
    torch.mul(log, gamma, out=power).exp2_()
    g_dot_y = torch.mul(g, power, out=t).sum(-1, keepdim=True).mul_(ratio)
    torch.mul(g, ratio, out=t)
    t.addcmul_(power, g_dot_y / power_sq, value=-1).mul_(power)
    torch.div(t, a, out=power).mul_(gamma)
    a.copy_(z).clamp_min_(0)  # u, since a has the smallest number where u is 0
    torch.addcmul(power, a, g_dot_y.div_(a_sq).div_(peak), out=dz)
    return t.mul_(log).sum(-1, keepdim=True).mul_(peak).mul_(math.log(2))
