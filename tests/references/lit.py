"""LiT's linear attention with a depthwise convolution, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import conv_on_grid, eq4, output, per_head, project

CASES = {
    "lit": {},
    "lit-own-filters": {"heads_share_filters": False, "kernel_size": 3, "qkv_bias": False},
    "lit-order-quadratic": {"association": "quadratic"},
}


def reference(module, x, context):
    """O = Eq. 4 with phi = ReLU, plus DWC(V)."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        parts = zip(
            *(per_head(z, module.num_heads) for z in (q.clamp_min(0), k.clamp_min(0), v)), strict=True
        )
        o = torch.cat([eq4(*head, module.options.eps) for head in parts], -1)
        local = conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, context.grid)
        images.append(output(module, o + local))
    return torch.stack(images)
