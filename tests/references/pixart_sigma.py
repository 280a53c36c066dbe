"""PixArt-Sigma's key and value compression, one key and one query at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "pixart-sigma": {},  # 7 x 9 tokens at stride 2: the last row and the last column reach no key
    "pixart-sigma-stride-3": {"stride": 3, "qkv_bias": False, "qk_norm": True},
    "pixart-sigma-stride-1": {"stride": 1},
}


def layer_norm(norm, row):
    centred = row - row.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def compressed(module, z, grid):
    """One key for every full s x s square of tokens: their weighted sum, then LayerNorm."""
    stride = module.options.stride
    if stride == 1:
        return z
    weight, bias = module.compress.weight, module.compress.bias
    keys = []
    for top in range(0, grid[0] - stride + 1, stride):
        for left in range(0, grid[1] - stride + 1, stride):
            total = bias
            for a in range(stride):
                for b in range(stride):
                    total = total + weight[:, 0, a, b] * z[(top + a) * grid[1] + left + b]
            keys.append(layer_norm(module.norm, total))
    return torch.stack(keys)


def reference(module, x, context):
    """Eq. 3 over the compressed keys and values."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        if module.options.qk_norm:
            q = torch.stack([layer_norm(module.q_norm, row) for row in q])
            k = torch.stack([layer_norm(module.k_norm, row) for row in k])
        k, v = compressed(module, k, context.grid), compressed(module, v, context.grid)
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            rows = []
            for q_i in q_h:
                sim = torch.exp(torch.stack([q_i @ k_j for k_j in k_h]) / q_h.shape[-1] ** 0.5)
                rows.append(sum(s * v_j for s, v_j in zip(sim, v_h, strict=True)) / sim.sum())
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
