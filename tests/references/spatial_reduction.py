"""PVT's spatial-reduction attention, one cell and one query at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "spatial-reduction": {},
    "spatial-reduction-by-3": {"stride": 3, "qkv_bias": False},
    "spatial-reduction-by-1": {"stride": 1},
}


def reduced(module, tokens, grid):
    """LayerNorm(Conv_{s,s}(x)): whole cells only, the rest of the grid is dropped."""
    conv, norm = module.reduce, module.norm
    if conv is None:
        return tokens
    (height, width), s = grid, conv.weight.shape[-1]
    cells = []
    for top in range(0, height - s + 1, s):
        for left in range(0, width - s + 1, s):
            total = conv.bias
            for a in range(s):
                for b in range(s):
                    total = total + conv.weight[:, :, a, b] @ tokens[(top + a) * width + left + b]
            centred = total - total.mean()
            cells.append(centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias)
    return torch.stack(cells)


def reference(module, x, context):
    """SRA: queries from every token, keys and values from the reduced grid."""
    images = []
    for image in x:
        q, _, _ = project(module, image)
        _, k, v = project(module, reduced(module, image, context.grid))
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            rows = [(k_h @ q_i / q_i.shape[0] ** 0.5).softmax(0) @ v_h for q_i in q_h]
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
