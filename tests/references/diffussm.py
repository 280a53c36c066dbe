"""DiffuSSM's block, its state-space models one token at a time in complex numbers."""

from __future__ import annotations

import torch

from references.gated_conv import gelu

CASES = {
    "diffussm": {"state_dim": 8},
    "diffussm-small-chunks": {"state_dim": 4, "chunk_size": 8, "hourglass": 1, "expand": 1},
}


def scan(ssm, channels, u):
    """The recurrence of these channels over u [L, C]."""
    delta = torch.exp(ssm.log_step[channels])[:, None]
    a = torch.complex(-torch.exp(ssm.log_decay[channels]), ssm.frequency[channels])
    c = torch.view_as_complex(ssm.reading[channels].contiguous())
    a_bar = torch.exp(delta * a)
    b_bar = (a_bar - 1) / a
    state, rows = torch.zeros_like(a), []
    for u_t in u:
        state = a_bar * state + b_bar * u_t[:, None]
        rows.append(2 * (c * state).sum(-1).real + ssm.skip[channels] * u_t)
    return torch.stack(rows)


def dense(layer, z):
    return z @ layer.weight.T + layer.bias


def reference(module, x, context):
    m, dim = module.hourglass, x.shape[-1]
    images = []
    for image in x:
        u = gelu(dense(module.up, gelu(dense(module.narrow, image)))).reshape(-1, 2 * dim)
        ahead = scan(module.ssm, slice(0, dim), u[:, :dim])
        back = scan(module.ssm, slice(dim, 2 * dim), u[:, dim:].flip(0)).flip(0)
        y = ahead + back
        parts = []
        for k in range(m):  # the k-th of every m tokens has a projection of its own
            own = slice(k * dim // m, (k + 1) * dim // m)
            parts.append(gelu(y[k::m] @ module.down.weight[own, :, 0].T + module.down.bias[own]))
        short = torch.cat(parts, -1)
        images.append(dense(module.out, gelu(dense(module.mix, short)) * gelu(dense(module.gate, image))))
    return torch.stack(images)
