"""Focused linear attention, in its released order of operations, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import conv_on_grid, output, per_head, phi, project

CASES = {
    "focused": {},
    "focused-power-2": {"power": 2.0, "kernel_size": 3, "qkv_bias": False},
}


def reference(module, x, context):
    """Flatten Transformer's released forward, in its own order of operations."""
    grid = context.grid
    scale = torch.log1p(torch.exp(module.scale))
    images = []
    for image in x:
        q, k, v = project(module, image)
        k = k + module.position

        def kernel(z):
            z = (z.clamp_min(0) + 1e-6) / scale
            return torch.stack([phi(row, module.options.power) for row in z])

        q, k = kernel(q), kernel(k)
        n = len(image)
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            z = 1 / (q_h @ k_h.mean(0) + module.options.eps)
            heads.append(q_h @ ((k_h.T * n**-0.5) @ (v_h * n**-0.5)) * z[:, None])
        o = torch.cat(heads, -1) + conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, grid)
        images.append(output(module, o))
    return torch.stack(images)
