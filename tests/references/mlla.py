"""MLLA's linear attention, one token at a time, with rotations as complex numbers."""

from __future__ import annotations

import cmath

import torch

from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    "mlla": {},
    "mlla-conv-5": {"kernel_size": 5, "qkv_bias": False, "eps": 1e-3},
    "mlla-order-linear": {"association": "linear"},
}


def elu_plus_one(z):
    return torch.where(z > 0, z + 1, torch.exp(z))


def turn(row, angles):
    """Multiply the channels (2f, 2f + 1), taken as a complex number, by exp(i angle_f)."""
    out = []
    for f, angle in enumerate(angles):
        unit = cmath.exp(1j * angle)
        re, im = row[2 * f], row[2 * f + 1]
        out += [re * unit.real - im * unit.imag, re * unit.imag + im * unit.real]
    return torch.stack(out)


def rope(z, grid):
    """A quarter of the width is frequencies by row, a quarter by column, over all heads at once."""
    quarter = z.shape[-1] // 4
    thetas = [10000 ** (-f / quarter) for f in range(quarter)]
    rows = []
    for n, row in enumerate(z):
        y, x = divmod(n, grid[1])
        rows.append(turn(row, [y * t for t in thetas] + [x * t for t in thetas]))
    return torch.stack(rows)


def reference(module, x, context):
    """q and k are rotated in the numerator, not in the denominator."""
    grid = context.grid
    images = []
    for image in x:
        q, k, v = project(module, image)
        q, k = elu_plus_one(q), elu_plus_one(k)
        n, heads = len(image), []
        split = (per_head(z, module.num_heads) for z in (q, k, v, rope(q, grid), rope(k, grid)))
        for q_h, k_h, v_h, rq_h, rk_h in zip(*split, strict=True):
            state = sum(torch.outer(k_j, v_j) for k_j, v_j in zip(rk_h, v_h, strict=True)) / n
            z = [1 / (q_i @ k_h.mean(0) + module.options.eps) for q_i in q_h]
            heads.append(torch.stack([rq_i @ state * z_i for rq_i, z_i in zip(rq_h, z, strict=True)]))
        lepe = conv_on_grid(module.lepe.conv.weight, module.lepe.conv.bias, v, grid)
        images.append(output(module, torch.cat(heads, -1) + lepe))
    return torch.stack(images)
