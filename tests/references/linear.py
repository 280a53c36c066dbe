"""Sana's ReLU linear attention, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import eq4, output, per_head, project, rms_norm

CASES = {
    "linear": {},
    "linear-qk-norm": {"qk_norm": True},
    "linear-order-linear": {"association": "linear"},
    "linear-order-quadratic": {"association": "quadratic"},
}


def reference(module, x, context):
    """Sana: phi = ReLU."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        if module.options.qk_norm:
            q, k = rms_norm(module.q_norm, q), rms_norm(module.k_norm, k)
        q, k = q.clamp_min(0), k.clamp_min(0)
        heads = zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True)
        images.append(output(module, torch.cat([eq4(*h, module.options.eps) for h in heads], -1)))
    return torch.stack(images)
