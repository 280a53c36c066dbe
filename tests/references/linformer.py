"""Linformer, one query at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "linformer": {"rank": 10},
    "linformer-shared": {"rank": 7, "shared_projection": True, "qkv_bias": True},
}


def mix(mixtures, z):
    """E z, one mixture of tokens after another: [k, N], [N, C] -> [k, C]."""
    return torch.stack([sum(e * z_j for e, z_j in zip(row, z, strict=True)) for row in mixtures])


def reference(module, x, context):
    """Eq. 7: softmax(Q (E K)^T / sqrt(D)) (F V) in every head."""
    e = module.key_mixtures
    f = e if module.value_mixtures is None else module.value_mixtures
    images = []
    for image in x:
        q, k, v = project(module, image)
        heads = []
        parts = (per_head(z, module.num_heads) for z in (q, mix(e, k), mix(f, v)))
        for q_h, k_h, v_h in zip(*parts, strict=True):
            rows = [(k_h @ q_i / q_i.shape[0] ** 0.5).softmax(0) @ v_h for q_i in q_h]
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
