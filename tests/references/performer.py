"""Performer's FAVOR+ with the module's own random features, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "performer": {"num_features": 10},
    "performer-eps": {"num_features": 3, "eps": 1e-2, "qkv_bias": False},
}


def phi(z, w, peak, eps):
    """M^(-1/2) (exp(w_m . z - |z|^2 / 2 - peak) + eps) for m = 1..M."""
    rows = [torch.exp(w_m @ z - z @ z / 2 - peak) + eps for w_m in w]
    return torch.stack(rows) / len(w) ** 0.5


def reference(module, x, context):
    """Stabilised as released: queries each by their own maximum, keys by that of their image and head."""
    w = module.features
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            q, k = q / q.shape[-1] ** 0.25, k / k.shape[-1] ** 0.25
            key_peak = max((w_m @ k_j).detach() for w_m in w for k_j in k)
            phi_k = [phi(k_j, w, key_peak, module.eps) for k_j in k]
            rows = []
            for q_i in q:
                phi_q = phi(q_i, w, (w @ q_i).max().detach(), module.eps)
                weights = torch.stack([phi_q @ p for p in phi_k])
                rows.append(sum(a * v_j for a, v_j in zip(weights / weights.sum(), v, strict=True)))
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
