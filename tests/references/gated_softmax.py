"""Gated softmax attention (arXiv:2505.06708), one token at a time: Y' = Y * sigmoid(X W)."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "gated-softmax": {},
    "gated-softmax-headwise": {"gate": "headwise", "qkv_bias": False},
}


def reference(module, x, context):
    """A head's output for token i is softmax attention times the gate that token i's input gives."""
    images = []
    for image in x:
        logits = image @ module.gate.weight.T
        if module.gate.bias is not None:
            logits = logits + module.gate.bias
        heads = []
        parts = (*project(module, image), logits)
        for q, k, v, g in zip(*(per_head(z, module.num_heads) for z in parts), strict=True):
            rows = []
            for i, q_i in enumerate(q):
                sim = torch.exp(torch.stack([q_i @ k_j for k_j in k]) / q.shape[-1] ** 0.5)
                y = sum(s * v_j for s, v_j in zip(sim, v, strict=True)) / sim.sum()
                rows.append(y / (1 + torch.exp(-g[i])))
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
