"""Sliding tile attention, one token at a time: the window of tiles around its tile, shifted inwards."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project, tiles_of

CASES = {
    "sliding-tile": {},
    "sliding-tile-wide": {"tile_size": 1, "window_tiles": 5, "qkv_bias": False},
}


def around(at, size, window):
    """The tiles of a window on an axis: its middle stays half a window away from both ends."""
    half = window // 2
    middle = min(max(at, half), size - 1 - half)
    return range(middle - half, middle + half + 1)


def reference(module, x, context):
    """o_i = sum over the tokens of the window's tiles of softmax(q_i . k_j / sqrt(D)) v_j."""
    options = {"tile_size": module.tiling.size, "window": round(module.around.shape[1] ** 0.5)}
    tiles = tiles_of(context.grid, options["tile_size"])
    height, width = (-(-side // options["tile_size"]) for side in context.grid)
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            rows = {}
            for number, tile in enumerate(tiles):
                down = around(number // width, height, options["window"])
                across = around(number % width, width, options["window"])
                tokens = [token for a in down for b in across for token in tiles[a * width + b]]
                for i in tile:
                    rows[i] = (k[tokens] @ q[i] / q.shape[1] ** 0.5).softmax(0) @ v[tokens]
            heads.append(torch.stack([rows[i] for i in range(len(q))]))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)
