"""MambaOut's gated convolution, one token at a time."""

from __future__ import annotations

import math

import torch

from references.pieces import conv_on_grid

CASES = {
    "gated-conv": {},
    "gated-conv-some-channels": {"kernel_size": 3, "conv_ratio": 0.5, "expansion": 1.5},
}


def gelu(z):
    return z * (1 + torch.erf(z / math.sqrt(2))) / 2


def reference(module, x, context):
    hidden, kept, _ = module.parts
    images = []
    for image in x:
        h = image @ module.into.weight.T + module.into.bias
        g, i, c = h[:, :hidden], h[:, hidden : hidden + kept], h[:, hidden + kept :]
        c = conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, c, context.grid)
        images.append((gelu(g) * torch.cat((i, c), -1)) @ module.out.weight.T + module.out.bias)
    return torch.stack(images)
