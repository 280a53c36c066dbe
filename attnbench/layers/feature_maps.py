"""Feature maps of linear attention: elu + 1, and the norm-preserving power of focused and DyDiLA."""

from __future__ import annotations

from typing import Any

import torch


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1, in at least fp32: x + 1 above zero, e^x below.

    Written without the difference (e^x - 1) + 1, which rounds every x < -17 to zero in fp32.
    Source: Linear Transformers arXiv:2006.16236, eq. 7.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.clamp(max=0).exp() + x.relu()


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
    dtype = torch.promote_types(z.dtype, torch.float32)
    tiny = torch.finfo(dtype).tiny
    u = z.to(dtype).relu()
    peak = u.amax(-1, keepdim=True).clamp_min(tiny)  # [..., 1]
    a = u / peak  # in [0, 1]
    power = a.pow(gamma.to(dtype))  # 0 ** gamma = 0 since gamma >= 1
    a_sq = a.square().sum(-1, keepdim=True).clamp_min(tiny)
    power_sq = power.square().sum(-1, keepdim=True).clamp_min(tiny)
    ratio = (a_sq / power_sq).sqrt()
    y = power * (peak * ratio)
    return y.to(z.dtype), a, power, peak, a_sq, power_sq


class _PowerFocus(torch.autograd.Function):
    """Closed-form backward, so that autograd keeps two [..., C] tensors instead of eight."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        y, a, power, peak, a_sq, power_sq = _forward(z, gamma)
        ctx.save_for_backward(a, power, peak, a_sq, power_sq, gamma)
        ctx.z_dtype = z.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """With p = a^gamma, (g.y) = sum_k g_k y_k and t_k = |a|/|p| g_k - p_k (g.y) / (peak |p|^2):

        dz_k = a_k (g.y) / (peak |a|^2) + gamma a_k^(gamma-1) t_k
        dgamma = peak sum_k p_k t_k log a_k   (the log peak terms of log u cancel)

        Where z_k <= 0, a_k and p_k are 0 and so are both terms: no mask is needed.
        """
        a, power, peak, a_sq, power_sq, gamma = ctx.saved_tensors
        g = grad.to(a.dtype)
        ratio = (a_sq / power_sq).sqrt()  # |a| / |p|
        g_dot_y = (g * power).sum(-1, keepdim=True) * ratio  # (g.y) / peak
        t = (g * ratio).addcmul_(power, g_dot_y / power_sq, value=-1)
        a_positive = a.clamp_min(torch.finfo(a.dtype).tiny)  # p / a is 0 / tiny on the zeros
        dz = (power / a_positive).mul_(gamma.to(a.dtype)).mul_(t).addcmul_(a, g_dot_y / a_sq)
        if not ctx.needs_input_grad[1]:
            return dz.to(ctx.z_dtype), None
        dgamma = peak * t.mul_(power).mul_(a_positive.log_()).sum(-1, keepdim=True)  # [..., 1]
        return dz.to(ctx.z_dtype), dgamma.sum_to_size(gamma.shape).to(gamma.dtype)
