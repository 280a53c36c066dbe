"""Sparse-linear attention, one tile of queries at a time, as in the paper's algorithm 1."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project, tiles_of

# of 6 tiles 1 critical, 5 marginal; of 12 tiles 3 critical, 2 negligible; all of 6 tiles beside all tokens
CASES = {
    "sla": {},
    "sla-elu": {"tile_size": 3, "critical": 0.25, "negligible": 0.2, "feature_map": "elu"},
    "sla-all": {"critical": 0.3, "linear": "all", "qkv_bias": False},
}


# rounding flips a ranking, which is not continuous: make all tiles critical in low-precision tests
def continuous(options):
    return options | {"critical": 1.0, "negligible": 0.0, "linear": "all"}


def phi(module, z):
    """The feature map, row by row."""
    if module.options.feature_map == "softmax":
        return z.softmax(-1)
    return torch.where(z > 0, z + 1, torch.exp(z))


def linear(q, k, v):
    """phi(Q) H / (phi(Q) Z) for queries and keys after their feature map."""
    h = sum(torch.outer(k_j, v_j) for k_j, v_j in zip(k, v, strict=True))
    z = sum(k)
    return torch.stack([(q_i @ h) / (q_i @ z + 1e-5) for q_i in q])


def reference(module, x, context):
    """Softmax over the tokens of critical tiles, plus the projection of linear attention."""
    tiles = tiles_of(context.grid, module.options.tile_size)
    count = len(tiles)
    critical = -int(-module.options.critical * count // 1)  # rounded up
    last = count - int(module.options.negligible * count)
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            pooled = torch.stack([k[tile].mean(0) for tile in tiles])
            rows = {}
            for tile in tiles:
                p = (pooled @ q[tile].mean(0) / q.shape[1] ** 0.5).softmax(0)
                order = sorted(range(count), key=lambda t: -p[t].item())
                near = [token for t in order[:critical] for token in tiles[t]]
                between = [token for t in order[critical:last] for token in tiles[t]]
                if module.options.linear == "all":
                    between = list(range(len(q)))
                far = linear(phi(module, q[tile]), phi(module, k[between]), v[between])
                for i, o_l in zip(tile, far, strict=True):
                    o_s = (k[near] @ q[i] / q.shape[1] ** 0.5).softmax(0) @ v[near]
                    rows[i] = o_s + module.project.weight @ o_l + module.project.bias
            heads.append(torch.stack([rows[i] for i in range(len(q))]))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
