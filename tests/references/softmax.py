"""Softmax attention (eq. 3 of arXiv:2601.13683), one token at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "softmax": {},
    "softmax-math": {"implementation": "math", "qkv_bias": False},
}


def reference(module, x, context):
    """Eq. 3: Sim(q, k) = exp(q . k / sqrt(D))."""
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            rows = []
            for q_i in q:
                sim = torch.exp(torch.stack([q_i @ k_j for k_j in k]) / q.shape[-1] ** 0.5)
                rows.append(sum(s * v_j for s, v_j in zip(sim, v, strict=True)) / sim.sum())
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
