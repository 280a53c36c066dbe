"""Mixture of block attention, one query at a time."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project, tiles_of

CASES = {
    "moba": {"top_k": 2},
    "moba-free": {"tile_size": 3, "top_k": 4, "own_tile": False, "qkv_bias": False},
}


# rounding flips a top-k choice, which is not continuous: choose all tiles in low-precision tests
def continuous(options):
    return options | {"top_k": {4: 6, 3: 9}[options.get("tile_size", 4)]}  # of a 7 x 9 grid


def reference(module, x, context):
    """Each query's softmax over the tokens of the blocks whose mean key is nearest to it."""
    options = module.options
    blocks = tiles_of(context.grid, options.tile_size)
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            rows = []
            for i, query in enumerate(q):
                scores = [(query @ k[block].mean(0)).item() for block in blocks]
                if options.own_tile:
                    scores = [
                        float("inf") if i in block else s for s, block in zip(scores, blocks, strict=True)
                    ]
                best = sorted(range(len(blocks)), key=lambda b: -scores[b])[: options.top_k]
                tokens = [token for b in best for token in blocks[b]]
                rows.append((k[tokens] @ query / len(query) ** 0.5).softmax(0) @ v[tokens])
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
