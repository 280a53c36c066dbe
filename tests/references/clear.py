"""CLEAR, one token at a time: the keys nearer than the radius, and the cells' weighted sums."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "clear": {},
    "clear-tiles": {"radius": 3, "implementation": "tiles"},
    "clear-mask": {"radius": 3, "implementation": "mask", "qkv_bias": False},
}


def cells(module, z, grid):
    """The weighted sum of the tokens of every cell: [N, D] -> [M, D]; nothing without a down_factor."""
    height, width = grid
    side = module.options.down_factor
    rows = []
    if side > 1:
        for i in range(0, height, side):
            for j in range(0, width, side):
                places = [(a, b) for a in range(side) for b in range(side)]
                terms = [module.cell_weight[a, b] * z[(i + a) * width + j + b] for a, b in places]
                rows.append(sum(terms))
    return rows


def reference(module, x, context):
    """o_i = sum over the circle (and the cells) of softmax(q_i . k_j / sqrt(D)) v_j."""
    height, width = context.grid
    places = [(i, j) for i in range(height) for j in range(width)]
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            far_k, far_v = (cells(module, z, context.grid) for z in (k, v))
            rows = []
            for i, here in enumerate(places):
                near = [j for j, there in enumerate(places) if dist(here, there) < module.options.radius]
                keys, values = torch.stack([*k[near], *far_k]), torch.stack([*v[near], *far_v])
                rows.append((keys @ q[i] / len(q[i]) ** 0.5).softmax(0) @ values)
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)


def dist(here, there):
    """Euclidean, in tokens."""
    return sum((a - b) ** 2 for a, b in zip(here, there, strict=True)) ** 0.5
