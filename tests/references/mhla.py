"""Multi-head linear attention, one query at a time, each over the tokens of all blocks."""

from __future__ import annotations

import math

import torch

from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    "mhla": {"blocks": 3},
    "mhla-alone": {"lepe": False, "blocks": 2, "qkv_bias": False},
    "mhla-one-block": {"blocks": 1},
}


def block_of(token, grid, blocks):
    """The number of the block of a token, row by row."""
    y, x = divmod(token, grid[1])
    return y // math.ceil(grid[0] / blocks) * blocks + x // math.ceil(grid[1] / blocks)


def reference(module, x, context):
    """Eq. 4: o = sum_t m_ib(t) q k_t v_t / sum_t m_ib(t) q k_t."""
    options, grid, mixing = module.options, context.grid, module.mixing.clamp(0, 1)
    block = [block_of(token, grid, options.blocks) for token in range(x.shape[1])]
    images = []
    for image in x:
        q, k, v = project(module, image)
        q, k = q.clamp_min(0) + 1e-6, k.clamp_min(0) + 1e-6
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            rows = []
            for i, q_i in enumerate(q_h):
                weights = (k_h @ q_i) * mixing[block[i]][block]
                rows.append(weights @ v_h / (weights.sum() + options.eps))
            heads.append(torch.stack(rows))
        o = torch.cat(heads, -1)
        if module.lepe is not None:
            o = o + conv_on_grid(module.lepe.conv.weight, module.lepe.conv.bias, v, grid)
        images.append(output(module, o))
    return torch.stack(images)
