"""Mixture-of-Head attention, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

# a top-1 gate among several is p / p = 1: its gradient is rounding noise, which cannot be compared
CASES = {
    "moh": {},
    "moh-one-shared": {"num_shared_heads": 1, "top_k": 2},
    "moh-all-routed": {"num_shared_heads": 0, "top_k": 2, "qkv_bias": False},
    "moh-all-shared": {"num_shared_heads": 3, "top_k": 0},
}


# rounding flips a top-k choice, which is not continuous: keep every routed head in low-precision tests
def continuous(options):
    return options | {"num_shared_heads": 1, "top_k": 2}


def gates(module, token):
    """The weights of one token's heads, shared heads first."""
    shared, k = module.options.num_shared_heads, module.options.top_k
    weights = []
    if shared == 1:
        weights.append(torch.ones(1, dtype=token.dtype))
    elif shared:
        weights.append((module.shared_router.weight @ token).softmax(-1) * shared)
    if shared < module.num_heads:
        p = (module.routed_router.weight @ token).softmax(-1)
        best = sorted(range(len(p)), key=lambda e: -p[e].item())[:k]
        total = sum(p[e] for e in best)
        routed = [k * p[e] / total if e in best else p[e] * 0 for e in range(len(p))]
        weights.append(torch.stack(routed))
    if len(weights) == 2:
        first, second = 2 * (module.group_router.weight @ token).softmax(-1)
        weights = [first * weights[0], second * weights[1]]
    return torch.cat(weights)


def reference(module, x, context):
    """Softmax attention whose heads are weighted before the output projection."""
    images = []
    for image in x:
        parts = zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True)
        heads = [(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts]
        rows = []
        for i, token in enumerate(image):
            g = gates(module, token)
            rows.append(torch.cat([g_h * head[i] for g_h, head in zip(g, heads, strict=True)]))
        images.append(output(module, torch.stack(rows)))
    return torch.stack(images)
