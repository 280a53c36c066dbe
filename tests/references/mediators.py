"""Attention mediators, one image and one head at a time."""

from __future__ import annotations

import torch

from references.agent import pooled, position_bias
from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    # the tests' timesteps lie at 20, 500 and 980: two numbers of mediators in a batch, one never used
    "mediators": {"schedule": ((300.0, 9), (400.0, 16), (1000.0, 4))},
    "mediators-unbiased": {"schedule": ((500.0, 16), (1000.0, 1)), "position_bias": False, "qkv_bias": False},
    "mediators-one-number": {"schedule": ((1000.0, 4),)},
}


def mediators_at(timestep, schedule):
    """The number of the first pair whose bound lies above the timestep."""
    return next(number for bound, number in schedule if timestep < bound)


def reference(module, x, context):
    """O = softmax(Q A^T / sqrt(D) + B2) softmax(A K^T / sqrt(D) + B1) V + DWC(V), A = pool(Q) to n(t)."""
    grid, images = context.grid, []
    for image, timestep in zip(x, context.timestep.tolist(), strict=True):
        number = mediators_at(timestep, module.options.schedule)
        q, k, v = project(module, image)
        a = pooled(q, grid, int(number**0.5))
        b1 = b2 = torch.zeros(module.num_heads, number, len(image), dtype=x.dtype)
        if module.options.position_bias:
            b1 = position_bias(module.gather_bias[str(number)], grid)
            b2 = position_bias(module.spread_bias[str(number)], grid)
        heads = []
        parts = zip(*(per_head(z, module.num_heads) for z in (q, k, v, a)), strict=True)
        for h, (q_h, k_h, v_h, a_h) in enumerate(parts):
            root = q_h.shape[-1] ** 0.5
            gathered = (a_h @ k_h.T / root + b1[h]).softmax(-1) @ v_h
            heads.append((q_h @ a_h.T / root + b2[h].T).softmax(-1) @ gathered)
        o = torch.cat(heads, -1) + conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, grid)
        images.append(output(module, o))
    return torch.stack(images)
