"""EDiT's linear compressed attention, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import eq4, output, per_head

CASES = {
    "edit": {"norm_groups": 3},
    "edit-activation-first": {"norm_groups": 2, "norm_order": "activation_first", "qkv_bias": False},
    "edit-order-quadratic": {"norm_groups": 1, "rho": 0.25, "association": "quadratic"},
}


def convolve(conv, z, grid, stride):
    """A zero-padded 3x3 convolution, one output token and one tap at a time; depthwise or full."""
    height, width = grid
    tokens = []
    for i in range(0, height, stride):
        for j in range(0, width, stride):
            total = conv.bias
            for a in range(3):
                for b in range(3):
                    y, x = i + a - 1, j + b - 1
                    if 0 <= y < height and 0 <= x < width:
                        token, tap = z[y * width + x], conv.weight[:, :, a, b]
                        total = total + (token * tap[:, 0] if conv.groups > 1 else tap @ token)
            tokens.append(total)
    return torch.stack(tokens)


def group_norm(norm, z):
    """Mean and variance over all tokens and the channels of a group."""
    parts = []
    for part in z.chunk(norm.num_groups, dim=-1):
        parts.append((part - part.mean()) / (part.var(unbiased=False) + norm.eps).sqrt())
    return torch.cat(parts, -1) * norm.weight + norm.bias


def local_context(module, image, grid):
    """f(x) of the class docstring."""
    z = convolve(module.reduce, image, grid, 1)

    def leaky(z):
        return torch.where(z > 0, z, module.options.negative_slope * z)

    if module.options.norm_order == "norm_first":
        z = leaky(group_norm(module.norm, z))
    else:
        z = group_norm(module.norm, leaky(z))
    return z @ module.restore.weight[:, :, 0, 0].T + module.restore.bias


def reference(module, x, context):
    """Eq. 4 over N/4 keys."""
    grid, weight, bias = context.grid, module.qkv.qkv.weight, module.qkv.qkv.bias
    w_q, w_k, w_v = weight.chunk(3)
    b_q, b_k, b_v = bias.chunk(3) if bias is not None else (0, 0, 0)
    images = []
    for image in x:
        q = (image + local_context(module, image, grid)) @ w_q.T + b_q
        k = convolve(module.compress_k, image @ w_k.T + b_k, grid, 2).clamp_min(0)
        v = convolve(module.compress_v, image @ w_v.T + b_v, grid, 2)
        parts = zip(*(per_head(z, module.num_heads) for z in (q.clamp_min(0), k, v)), strict=True)
        images.append(output(module, torch.cat([eq4(*head, module.options.eps) for head in parts], -1)))
    return torch.stack(images)
