"""Linear attention with phi = elu + 1, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import eq4, output, per_head, project

CASES = {
    "elu": {},
    "elu-order-linear": {"association": "linear", "eps": 1e-2},
    "elu-order-quadratic": {"association": "quadratic", "qkv_bias": False},
}


def phi(z):
    """elu(z) + 1: exp(z) where z < 0, z + 1 elsewhere."""
    return torch.where(z < 0, z.clamp_max(0).exp(), z + 1)


def reference(module, x, context):
    """Transformers are RNNs, eq. 5-7, without a causal mask."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        heads = zip(*(per_head(z, module.num_heads) for z in (phi(q), phi(k), v)), strict=True)
        images.append(output(module, torch.cat([eq4(*h, module.options.eps) for h in heads], -1)))
    return torch.stack(images)
