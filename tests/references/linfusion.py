"""LinFusion's generalised linear attention, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import eq4, output, per_head

CASES = {
    "linfusion": {},
    "linfusion-narrow": {"mid_dim": 5, "qkv_bias": True},
    "linfusion-order-quadratic": {"association": "quadratic"},
}


def shifted(module, token):
    """x + Linear(LeakyReLU(LayerNorm(Linear(x))))."""
    z = module.enter.weight @ token + module.enter.bias
    centred = z - z.mean()
    z = centred / (centred.square().mean() + module.norm.eps).sqrt() * module.norm.weight + module.norm.bias
    z = torch.where(z > 0, z, 0.01 * z)
    return token + module.leave.weight @ z + module.leave.bias


def feature(z):
    return torch.where(z > 0, z + 1, z.exp())


def reference(module, x, context):
    """The denominator is q . mean(k) + eps, the numerator q mean(k^T v)."""
    parts, bias = module.qkv.qkv.weight.chunk(3), module.qkv.qkv.bias
    biases = bias.chunk(3) if bias is not None else (0, 0, 0)
    images = []
    for image in x:
        q = torch.stack([feature(parts[0] @ shifted(module.shift_q, t) + biases[0]) for t in image])
        k = torch.stack([feature(parts[1] @ shifted(module.shift_k, t) + biases[1]) for t in image])
        v = torch.stack([parts[2] @ t + biases[2] for t in image])
        heads = zip(*(per_head(z, module.num_heads) for z in (q, k / len(k), v)), strict=True)
        images.append(output(module, torch.cat([eq4(*head, module.options.eps) for head in heads], -1)))
    return torch.stack(images)
