"""Rank-augmented linear attention, one token at a time, with rotations as complex numbers."""

from __future__ import annotations

import cmath

import torch

from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    "rala": {},
    "rala-conv-3": {"kernel_size": 3, "qkv_bias": False, "eps": 1e-3},
    "rala-order-linear": {"association": "linear"},
}


def phi(z):
    """elu + 1."""
    return torch.where(z > 0, z + 1, torch.exp(z))


def rope(z, grid):
    """Within a head [N, D]: D/4 frequencies by row, then D/4 by column, from 1 down to 1/10000."""
    quarter = z.shape[-1] // 4
    thetas = [10000 ** -(f / max(quarter - 1, 1)) for f in range(quarter)]
    rows = []
    for n, row in enumerate(z):
        y, x = divmod(n, grid[1])
        turned = []
        for f, angle in enumerate([y * t for t in thetas] + [x * t for t in thetas]):
            unit = cmath.exp(1j * angle)
            re, im = row[2 * f], row[2 * f + 1]
            turned += [re * unit.real - im * unit.imag, re * unit.imag + im * unit.real]
        rows.append(torch.stack(turned))
    return torch.stack(rows)


def reference(module, x, context):
    """alpha_j = N softmax_j(q_g k_j / sqrt(D)); B = sum_j alpha_j k_j^T v_j; O_i = (q_i B / z_i) * g_i."""
    grid = context.grid
    images = []
    for image in x:
        q, k, v = project(module, image)
        gate = image @ module.modulation.weight.T
        if module.modulation.bias is not None:
            gate = gate + module.modulation.bias
        n, heads = len(image), []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (phi(q), phi(k), v)), strict=True):
            q_g = sum(q_h) / n
            exps = [torch.exp(q_g @ k_j / q_h.shape[-1] ** 0.5) for k_j in k_h]
            alpha = [n * e / sum(exps) for e in exps]
            k_h = torch.stack([a * k_j for a, k_j in zip(alpha, k_h, strict=True)])
            mass = sum(k_h) / n
            buffer = sum(torch.outer(k_j, v_j) for k_j, v_j in zip(rope(k_h, grid), v_h, strict=True)) / n
            rows = zip(rope(q_h, grid), q_h, strict=True)
            heads.append(torch.stack([rq @ buffer / (q_i @ mass + module.options.eps) for rq, q_i in rows]))
        lepe = conv_on_grid(module.lepe.conv.weight, module.lepe.conv.bias, v, grid)
        images.append(output(module, (torch.cat(heads, -1) + lepe) * gate))
    return torch.stack(images)
