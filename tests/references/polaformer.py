"""Polarity-aware linear attention, one token and one sign at a time."""

from __future__ import annotations

import torch

from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    "polaformer": {},
    "polaformer-alpha-2": {"alpha": 2.0, "kernel_size": 3, "qkv_bias": False, "eps": 1e-3},
    "polaformer-order-linear": {"association": "linear"},
}


def response(pairs, v, eps):
    """Normalised linear attention whose similarity is a sum of q . k over pairs of (queries, keys)."""
    rows = []
    for i in range(len(v)):
        weights = [sum(q[i] @ k[j] for q, k in pairs) for j in range(len(v))]
        total = sum(w * v_j for w, v_j in zip(weights, v, strict=True)) / len(v)
        rows.append(total / (sum(weights) / len(v) + eps))
    return torch.stack(rows)


def reference(module, x, context):
    """Same-signed parts (q+ k+ and q- k-) act on v's first half, opposite-signed ones on its second."""
    grid, eps = context.grid, module.options.eps
    scale = torch.log1p(torch.exp(module.scale))
    power = 1 + module.options.alpha / (1 + torch.exp(-module.power))
    images = []
    for image in x:
        q, k, v = project(module, image)
        q, k = q / scale, (k + module.position) / scale
        parts = {}
        for name, z in (("q+", q), ("q-", -q), ("k+", k), ("k-", -k)):
            signed = torch.where(z > 0, z.clamp_min(1e-300) ** power, 0.0)
            parts[name] = per_head(signed, module.num_heads)
        heads = []
        for h, v_h in enumerate(per_head(v, module.num_heads)):
            qp, qn, kp, kn = (parts[name][h] for name in ("q+", "q-", "k+", "k-"))
            first, second = v_h.chunk(2, dim=-1)
            same, opposite = [(qp, kp), (qn, kn)], [(qn, kp), (qp, kn)]
            heads.append(torch.cat([response(same, first, eps), response(opposite, second, eps)], -1))
        o = torch.cat(heads, -1) + conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, grid)
        g = image @ module.coefficients.weight.T
        if module.coefficients.bias is not None:
            g = g + module.coefficients.bias
        images.append(output(module, o * g))
    return torch.stack(images)
