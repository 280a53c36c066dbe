"""Mamba's mixer both ways, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import causal_conv, silu, softplus, visits

CASES = {
    "mamba": {},
    "mamba-recurrent-summed": {"form": "recurrent", "directions": "summed", "state_dim": 3},
    "mamba-small-chunks-zigma": {"chunk_size": 4, "scan": "zigma", "directions": "forward", "step_rank": 2},
    "mamba-transposed": {"scan": "transposed", "expand": 1, "state_dim": 2, "conv_size": 2},
}
LAYER = 1  # the layer the generic tests build


def scan(way, tokens):
    """One direction along [N, E]."""
    u = causal_conv(way.conv.conv.weight, way.conv.conv.bias, tokens)
    rank, state_dim, _ = way.parts
    low, b, c = (u @ way.select.weight.T).split((rank, state_dim, state_dim), -1)
    delta = softplus(low @ way.step.weight.T + way.step.bias)
    a = -torch.exp(way.log_a)
    state, rows = torch.zeros_like(a), []
    for t in range(len(u)):
        state = torch.exp(delta[t] * a) * state + torch.outer(b[t], delta[t] * u[t])
        rows.append(c[t] @ state + way.skip * u[t])
    return torch.stack(rows)


def mixer(module, tokens):
    """A sequence of tokens [N, C] in the order of the scan; each direction is gated, as in Vim's code."""
    u, z = (tokens @ module.into.weight.T).chunk(2, -1)
    y = scan(module.ways[0], u) * silu(z)
    if module.options.directions != "forward":
        y = y + (scan(module.ways[1], u.flip(0)) * silu(z).flip(0)).flip(0)
    if module.options.directions == "averaged":
        y = y / 2
    return y @ module.out.weight.T


def reference(module, x, context, layer_idx=LAYER):
    order = torch.tensor(visits(module.options.scan, context.grid, layer_idx))
    return torch.stack([mixer(module, image[order])[order.argsort()] for image in x])
