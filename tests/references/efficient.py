"""Efficient attention, one token at a time: global context vectors, then their mixtures."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "efficient": {},
    "efficient-order-linear": {"association": "linear"},
    "efficient-order-quadratic": {"association": "quadratic", "qkv_bias": False},
}


def reference(module, x, context):
    """E = rho_q(Q) (rho_k(K)^T V): softmax of Q along channels, of K along tokens."""
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            contexts = []
            for channel in k.T:  # one attention map over all tokens for each channel of the keys
                weight = torch.exp(channel) / torch.exp(channel).sum()
                contexts.append(sum(w_j * v_j for w_j, v_j in zip(weight, v, strict=True)))
            rows = []
            for q_i in q:
                share = torch.exp(q_i) / torch.exp(q_i).sum()
                rows.append(sum(s * g for s, g in zip(share, contexts, strict=True)))
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
