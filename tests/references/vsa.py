"""VSA, one tile and one token at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project, tiles_of

CASES = {
    "vsa": {},
    "vsa-coarse-gate": {"tile_size": 3, "top_k": 4, "gates": "coarse", "qkv_bias": False},
}


# rounding flips a top-k choice, which is not continuous: choose all tiles in low-precision tests
def continuous(options):
    return options | {"top_k": {4: 6, 3: 9}[options.get("tile_size", 4)]}  # of a 7 x 9 grid


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def reference(module, x, context):
    """Means of tiles attend to means of tiles; tokens to the tokens of the best of these tiles."""
    tiles = tiles_of(context.grid, module.options.tile_size)
    images = []
    for image in x:
        coarse_heads, fine_heads = [], []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            coarse, fine = torch.zeros_like(v), torch.zeros_like(v)
            means_k, means_v = (torch.stack([z[tile].mean(0) for tile in tiles]) for z in (k, v))
            for tile in tiles:
                weights = (means_k @ q[tile].mean(0) / q.shape[1] ** 0.5).softmax(0)
                best = sorted(range(len(tiles)), key=lambda t: -weights[t].item())[: module.options.top_k]
                tokens = [token for t in best for token in tiles[t]]
                for i in tile:
                    coarse = coarse.index_add(0, torch.tensor([i]), (weights @ means_v)[None])
                    row = (k[tokens] @ q[i] / q.shape[1] ** 0.5).softmax(0) @ v[tokens]
                    fine = fine.index_add(0, torch.tensor([i]), row[None])
            coarse_heads.append(coarse)
            fine_heads.append(fine)
        coarse, fine = torch.cat(coarse_heads, -1), torch.cat(fine_heads, -1)
        if module.options.gates == "both":
            fine = linear(module.fine_gate, image) * fine
        images.append(output(module, linear(module.coarse_gate, image) * coarse + fine))
    return torch.stack(images)
