"""DiG's gated linear attention, one token and one head at a time, on a stream that is really reordered."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from references.pieces import per_head

CASES = {
    "dig": {},
    "dig-recurrent": {"form": "recurrent"},
    "dig-small-chunks": {"chunk_size": 4},
    "dig-row-major": {"scan": "row-major", "expand_k": 1.0, "gate_rank": 5, "gate_normaliser": 0.5},
}
LAYER = 1  # the layer the generic tests build


def stream_order(layer_idx, grid):
    """Tokens in the order layer `layer_idx` of the released model sees them.

    After every layer the stream is flipped; after every second one it is read as an image and transposed.
    """
    stream = torch.arange(grid[0] * grid[1])
    shape = grid
    for layer in range(layer_idx):
        stream = stream.flip(0)
        if layer % 2 == 1:
            stream = stream.reshape(shape).T.flatten()
            shape = shape[::-1]
    return stream


def scan(module, tokens):
    """The recurrence along a sequence of tokens [N, C]."""
    options = module.options
    hidden = tokens @ module.forget[0].weight.T
    alpha = torch.sigmoid(hidden @ module.forget[1].weight.T + module.forget[1].bias)
    alpha = alpha ** (1 / options.gate_normaliser)
    parts = [tokens @ p.weight.T for p in (module.q, module.k, module.v, module.gate)]
    heads = []
    for q, k, v, g, a in zip(*(per_head(z, module.num_heads) for z in (*parts, alpha)), strict=True):
        state, rows = torch.zeros(k.shape[-1], v.shape[-1], dtype=v.dtype), []
        for t in range(len(tokens)):
            state = torch.diag(a[t]) @ state + torch.outer(k[t], v[t])
            o = q[t] / q.shape[-1] ** 0.5 @ state
            o = o / (o.square().mean() + 1e-6).sqrt() * module.norm.weight
            rows.append(o * F.silu(g[t]))
        heads.append(torch.stack(rows))
    return torch.cat(heads, -1) @ module.out.weight.T


def reference(module, x, context, layer_idx=LAYER):
    """Reorder, scan, put every token back to its place."""
    layer_idx = 0 if module.options.scan == "row-major" else layer_idx
    order = stream_order(layer_idx, context.grid)
    return torch.stack([scan(module, image[order])[order.argsort()] for image in x])
