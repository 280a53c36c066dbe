"""Feature fixation, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import eq4, output, per_head, project

CASES = {
    "feature-fixation": {"lent_share": 12},
    "feature-fixation-two-gates": {"lent_share": 8, "share_gate": False, "qkv_bias": False},
    "feature-fixation-alone": {"lent_share": None, "association": "quadratic"},
}
# which neighbour (rows down, columns right) lends the first, second, ... group, as the released slices say
IN_LINE = [(1, 0), (-1, 0), (0, 1), (0, -1)]
DIAGONAL = [(-1, -1), (1, 1), (-1, 1), (1, -1)]


def with_neighbours(tokens, grid, lent):
    """Channels of the eight tokens around; beyond the border zeros in line, the token's own else."""
    height, width = grid
    rows = []
    for i in range(height):
        for j in range(width):
            own = tokens[i * width + j]
            row = own.clone()
            for group, (down, right) in enumerate(IN_LINE + DIAGONAL):
                y, x, part = i + down, j + right, slice(group * lent, (group + 1) * lent)
                if 0 <= y < height and 0 <= x < width:
                    row[part] = tokens[y * width + x][part]
                elif group < 4:
                    row[part] = 0
            rows.append(row)
    return torch.stack(rows)


def reference(module, x, context):
    """Linear attention on sigmoid-weighted features of queries and keys."""
    options, gate_q, gate_k = module.options, module.gate_q, module.gate_k or module.gate_q
    images = []
    for image in x:
        q, k, v = project(module, image)
        if options.lent_share:
            lent = x.shape[-1] // options.lent_share
            k, v = with_neighbours(k, context.grid, lent), with_neighbours(v, context.grid, lent)
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            floor = 1 / q_h.shape[-1] ** 0.5
            q_h, k_h = q_h.clamp_min(0) + floor, k_h.clamp_min(0) + floor
            gated = []
            for features, gate in ((q_h, gate_q), (k_h, gate_k)):
                ratios = [
                    (gate.weight @ torch.cat([q_i, k_i, v_i]) + gate.bias).sigmoid()
                    for q_i, k_i, v_i in zip(q_h, k_h, v_h, strict=True)
                ]
                gated.append(features * torch.stack(ratios))
            heads.append(eq4(*gated, v_h, options.eps))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
