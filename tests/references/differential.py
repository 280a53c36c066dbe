"""Differential attention with both maps formed, one query at a time."""

from __future__ import annotations

import math

import torch

from references.pieces import output, per_head, project, rms_norm

CASES = {
    "differential": {},
    "differential-bias": {"qkv_bias": True},
}


def reference(module, x, context):
    """Eq. 1-3 in the second of three layers: layer_idx = 1."""
    start = 0.8 - 0.6 * math.exp(-0.3 * 1)
    lam = (
        torch.exp(module.lambda_q1 @ module.lambda_k1)
        - torch.exp(module.lambda_q2 @ module.lambda_k2)
        + start
    )
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            half = q.shape[-1] // 2
            rows = []
            for q_i in q:
                first = (k[:, :half] @ q_i[:half] / half**0.5).softmax(0)
                second = (k[:, half:] @ q_i[half:] / half**0.5).softmax(0)
                rows.append((first - lam * second) @ v)
            heads.append((1 - start) * rms_norm(module.norm, torch.stack(rows)))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
