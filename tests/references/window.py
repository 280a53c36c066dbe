"""Neighbourhood attention, one token at a time: the k x k window shifted inwards at the borders."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "window": {},
    "window-even": {"kernel_size": 4, "qkv_bias": False},
    "window-mask": {"kernel_size": 3, "implementation": "mask"},
}


def window(at, size, k):
    """The k positions nearest to `at` on an axis; an even k takes one more before than after."""
    first = at - k // 2
    while first < 0:
        first += 1
    while first + k > size:
        first -= 1
    return range(first, first + k)


def reference(module, x, context):
    """o_i = sum over the window of softmax(q_i . k_j / sqrt(D)) v_j."""
    height, width = context.grid
    size = module.options.kernel_size
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            rows = []
            for i in range(height):
                for j in range(width):
                    keys = [a * width + b for a in window(i, height, size) for b in window(j, width, size)]
                    logits = torch.stack([q[i * width + j] @ k[n] for n in keys]) / q.shape[-1] ** 0.5
                    weights = torch.exp(logits - logits.max().detach())
                    total = sum(w * v[n] for w, n in zip(weights, keys, strict=True))
                    rows.append(total / weights.sum())
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
