"""InLine attention, one query at a time, with the weights written out."""

from __future__ import annotations

import torch

from references.pieces import output, per_head, project

CASES = {
    "inline": {},
    "inline-wide-filters": {"kernel_size": 5, "qkv_bias": False},
    "inline-order-quadratic": {"association": "quadratic"},
}


def predicted(module, image):
    """W_2 GELU(W_1 mean(x)) inside each head: [C, k, k]."""
    z = per_head(image.mean(0), module.num_heads)
    for layer, gelu in ((module.squeeze, True), (module.filters, False)):
        weights, biases = layer.weight[:, :, 0].chunk(module.num_heads), layer.bias.chunk(module.num_heads)
        z = [w @ z_h + b for w, z_h, b in zip(weights, z, biases, strict=True)]
        if gelu:
            z = [z_h * 0.5 * (1 + torch.erf(z_h / 2**0.5)) for z_h in z]
    side = module.options.kernel_size
    return torch.cat(z).view(-1, side, side)


def local(filters, v, grid):
    """Each channel of each token: its neighbours' values weighted by the image's own filter."""
    (height, width), half = grid, filters.shape[-1] // 2
    rows = []
    for i in range(height):
        for j in range(width):
            total = torch.zeros_like(v[0])
            for a in range(-half, half + 1):
                for b in range(-half, half + 1):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        total = total + filters[:, a + half, b + half] * v[(i + a) * width + j + b]
            rows.append(total)
    return torch.stack(rows)


def reference(module, x, context):
    """InL(q_i, k_j) = s q_i . k_j - mean over keys of it + 1 / N."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            products = [k_h @ q_i / (len(k_h) * q_i.shape[0] ** 0.5) for q_i in q_h]
            heads.append(torch.stack([(p - p.mean() + 1 / len(k_h)) @ v_h for p in products]))
        o = torch.cat(heads, -1) + local(predicted(module, image), v, context.grid)
        images.append(output(module, o))
    return torch.stack(images)
