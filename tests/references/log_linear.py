"""Log-linear attention (arXiv:2506.04761), one token and head at a time, by the states of a Fenwick tree."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from references.pieces import conv_on_grid, output, per_head, project, rms_norm

CASES = {
    "log-linear": {},
    "log-linear-small-chunks": {"chunk_size": 4, "qkv_bias": True},
    "log-linear-one-chunk": {"chunk_size": 64, "kernel_size": 5},
}


def fenwick_scan(q, k, v, alpha, weights):
    """One causal scan over N = 2^m tokens: states[l] holds the bucket of level l, level 0 the token itself.

    Before token t > 0, the buckets up to the lowest set bit of t move into the one above it.
    """
    levels = weights.shape[-1]
    states, rows = [torch.zeros(k.shape[-1], v.shape[-1], dtype=v.dtype) for _ in range(levels)], []
    for t in range(len(q)):
        if t > 0:
            lowest = (t & -t).bit_length() - 1
            merged = sum(states[: lowest + 1])
            states = [state * 0 for state in states[: lowest + 1]] + [merged] + states[lowest + 2 :]
        states = [alpha[t] * state for state in states]
        states[0] = torch.outer(k[t], v[t])
        rows.append(sum(weights[t, level] * (q[t] @ states[level]) for level in range(levels)))
    return torch.stack(rows)


def both_ways(q, k, v, alpha, weights):
    """A scan from the first token and one from the last, of padded tokens; the token itself counts once."""
    n, size = len(q), 2 ** (weights.shape[-1] - 1)
    q, k, v, weights = (torch.cat((z, z.new_zeros(size - n, z.shape[-1]))) for z in (q, k, v, weights))
    alpha = torch.cat((alpha, alpha.new_ones(size - n)))
    others = weights * (torch.arange(weights.shape[-1]) > 0)
    backward = fenwick_scan(*(z.flip(0) for z in (q, k, v, alpha, others))).flip(0)
    return (fenwick_scan(q, k, v, alpha, weights) + backward)[:n]


def reference(module, x, context):
    """Mamba-2's layer around the scan: convolution and SiLU, steps and decays, skip, gate, norm."""
    heads = module.num_heads
    images = []
    for image in x:
        mixed = conv_on_grid(
            module.conv.conv.weight, None, torch.cat(project(module, image), -1), context.grid
        )
        parts = [per_head(z, heads) for z in F.silu(mixed).chunk(3, -1)]
        dt = F.softplus(image @ module.step.weight.T + module.decay.bias[0])  # [N, H]
        logits = per_head(image @ module.level.weight.T, heads)
        outputs = []
        for h, (q, k, v) in enumerate(zip(*parts, strict=True)):
            alpha = torch.exp(-module.decay.log_rate[0, h].exp() * dt[:, h])
            weights = F.softplus(module.level_scale[h] * logits[h])
            o = both_ways(q, k, dt[:, h, None] * v, alpha, weights)
            outputs.append(o + module.skip[h] * v)
        gated = torch.cat(outputs, -1) * F.silu(image @ module.gate.weight.T)
        images.append(output(module, rms_norm(module.norm, gated)))
    return torch.stack(images)
