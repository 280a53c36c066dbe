"""Mamba-2's mixer both ways, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import causal_conv, silu, softplus, visits

CASES = {
    "mamba2": {},
    "mamba2-recurrent": {"form": "recurrent", "state_dim": 5},
    "mamba2-small-chunks-zigma": {"chunk_size": 4, "scan": "zigma", "state_dim": 8},
    "mamba2-forward-transposed": {
        "directions": "forward",
        "scan": "transposed",
        "expand": 1,
        "state_dim": 3,
        "conv_size": 2,
    },
}
LAYER = 1  # the layer the generic tests build


def scan(module, tokens, steps, direction):
    """One direction: tokens [N, E + 2 S] before the convolution, steps [N, H]; returns [N, E]."""
    inner, state_dim, heads = module.inner, module.options.state_dim, module.heads
    channels = inner + 2 * state_dim
    own = slice(direction * channels, (direction + 1) * channels)
    convolved = causal_conv(module.conv.conv.weight[own], module.conv.conv.bias[own], tokens)
    values, b, c = convolved.split((inner, state_dim, state_dim), -1)
    a, skip = -torch.exp(module.log_a[direction]), module.skip[direction]
    delta = softplus(steps + module.step_bias[direction])
    state, rows = torch.zeros(heads, state_dim, inner // heads, dtype=values.dtype), []
    for t, x in enumerate(values.unflatten(-1, (heads, -1))):  # x [H, P]
        new = torch.einsum("h,s,hp->hsp", delta[t], b[t], x)
        state = torch.exp(delta[t] * a)[:, None, None] * state + new
        rows.append((c[t] @ state + skip[:, None] * x).flatten())
    return torch.stack(rows)


def mixer(module, tokens):
    """A sequence of tokens [N, C] in the order of the scan."""
    inner, state_dim, heads = module.inner, module.options.state_dim, module.heads
    both = module.options.directions == "both"
    z, x, *rest = (tokens @ module.into.weight.T).split(
        [inner, inner, *[2 * state_dim] * (1 + both), *[heads] * (1 + both)], -1
    )
    bc, steps = rest[: 1 + both], rest[1 + both :]
    y = scan(module, torch.cat((x, bc[0]), -1), steps[0], 0)
    if both:
        backward = scan(module, torch.cat((x, bc[1]), -1).flip(0), steps[1].flip(0), 1)
        y = y + backward.flip(0)
    y = y * silu(z)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.norm_weight
    return y @ module.out.weight.T


def reference(module, x, context, layer_idx=LAYER):
    order = torch.tensor(visits(module.options.scan, context.grid, layer_idx))
    return torch.stack([mixer(module, image[order])[order.argsort()] for image in x])
