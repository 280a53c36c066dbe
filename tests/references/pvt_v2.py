"""PVT v2's linear spatial reduction, one pooled cell and one query at a time."""

from __future__ import annotations

import math

import torch

from references.pieces import output, per_head

CASES = {"pvt-v2": {}, "pvt-v2-by-3": {"pool_size": 3, "qkv_bias": False}}


def pooled(module, tokens, grid):
    """GELU(LayerNorm(Conv_1x1(mean))) of cells; cell i of P from row floor(i h / P) to ceil((i+1) h / P)."""
    (height, width), size, norm = grid, module.options.pool_size, module.norm
    conv = module.mix.weight[:, :, 0, 0]
    cells = []
    for i in range(size):
        for j in range(size):
            rows = range(i * height // size, math.ceil((i + 1) * height / size))
            columns = range(j * width // size, math.ceil((j + 1) * width / size))
            mean = sum(tokens[y * width + x] for y in rows for x in columns) / (len(rows) * len(columns))
            z = conv @ mean + module.mix.bias
            z = (z - z.mean()) / (z.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
            cells.append(z * 0.5 * (1 + torch.erf(z / 2**0.5)))
    return torch.stack(cells)


def reference(module, x, context):
    """Queries from every token, keys and values from the pooled grid."""
    parts, bias = module.qkv.qkv.weight.chunk(3), module.qkv.qkv.bias
    biases = bias.chunk(3) if bias is not None else (0, 0, 0)
    images = []
    for image in x:
        few = pooled(module, image, context.grid)
        q, k, v = (z @ w.T + b for z, w, b in zip((image, few, few), parts, biases, strict=True))
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            rows = [(k_h @ q_i / q_i.shape[0] ** 0.5).softmax(0) @ v_h for q_i in q_h]
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
