"""Gated DeltaNet (arXiv:2412.06464), one token, one head and one direction at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from references.pieces import conv_on_grid, per_head, rms_norm

CASES = {
    "gated-deltanet": {},
    "gated-deltanet-forward": {"scan": "forward", "form": "recurrent", "kernel_size": 5},
    "gated-deltanet-small-chunks": {"chunk_size": 4, "expand_k": 0.5, "expand_v": 1.0},
}


def unit(z):
    return z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def gated_delta_rule(q, k, v, alpha, beta):
    """S_t = S_(t-1) (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T, o_t = S_t q_t; S is [Dv, Dk]."""
    state, rows = torch.zeros(v.shape[-1], k.shape[-1], dtype=v.dtype), []
    identity = torch.eye(k.shape[-1], dtype=v.dtype)
    for t in range(len(q)):
        state = state @ (alpha[t] * (identity - beta[t] * torch.outer(k[t], k[t])))
        state = state + beta[t] * torch.outer(v[t], k[t])
        rows.append(state @ q[t])
    return torch.stack(rows)


def both_directions(scan, parts, gates):
    """The mean of the scan from the first token and, with gates of its own, the one from the last."""
    found = [scan(*parts, *gates[0])]
    if len(gates) > 1:
        found.append(scan(*(z.flip(0) for z in parts), *(z.flip(0) for z in gates[1])).flip(0))
    return sum(found) / len(found)


def reference(module, x, context):
    """Project, convolve on the grid, scan every head, norm, gate."""
    heads, scans = module.num_heads, module.options.scans
    images = []
    for image in x:
        mixed = conv_on_grid(module.conv.conv.weight, None, image @ module.project.weight.T, context.grid)
        parts = [per_head(z, heads) for z in F.silu(mixed).split(module.split, -1)]
        gates = per_head(image @ module.gate.weight.T, heads)
        forget, step = (image @ p.weight.T for p in (module.forget, module.step))  # [N, S H]
        outputs = []
        for h, (q, k, v, g) in enumerate(zip(*parts, gates, strict=True)):
            directions = []
            for s in range(scans):
                dt = F.softplus(forget[:, s * heads + h] + module.decay.bias[s, h])
                alpha = torch.exp(-module.decay.log_rate[s, h].exp() * dt)
                directions.append((alpha, torch.sigmoid(step[:, s * heads + h])))
            q = unit(q) / q.shape[-1] ** 0.5
            o = both_directions(gated_delta_rule, (q, unit(k), v), directions)
            outputs.append(rms_norm(module.norm, o) * F.silu(g))
        images.append(torch.cat(outputs, -1) @ module.out.weight.T)
    return torch.stack(images)
