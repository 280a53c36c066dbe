"""Agent attention, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import conv_on_grid, output, per_head, project

CASES = {
    "agent": {"num_agents": 9},
    "agent-unbiased": {"num_agents": 16, "position_bias": False, "qkv_bias": True},
}


def position_bias(bias, grid):
    """Bilinear interpolation of the 7x7 table by hand (half-pixel centres), plus row and column terms."""
    if bias is None:
        return 0.0

    def taps(size, at):
        centre = min(max((at + 0.5) * 7 / size - 0.5, 0.0), 6.0)
        low = int(centre)
        return low, min(low + 1, 6), centre - low

    columns = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            y0, y1, fy = taps(grid[0], i)
            x0, x1, fx = taps(grid[1], j)
            t = bias.table
            top = t[:, :, y0, x0] * (1 - fx) + t[:, :, y0, x1] * fx
            low = t[:, :, y1, x0] * (1 - fx) + t[:, :, y1, x1] * fx
            columns.append(top * (1 - fy) + low * fy + bias.rows[:, :, i, 0] + bias.columns[:, :, 0, j])
    return torch.stack(columns, -1)  # [H, n, N]


def pooled(q, grid, side):
    """Adaptive average pooling: cell (a, b) averages rows floor(a H / s) .. ceil((a+1) H / s)."""
    height, width = grid
    agents = []
    for a in range(side):
        for b in range(side):
            ys = range(a * height // side, -(-(a + 1) * height // side))
            xs = range(b * width // side, -(-(b + 1) * width // side))
            agents.append(torch.stack([q[y * width + x] for y in ys for x in xs]).mean(0))
    return torch.stack(agents)


def reference(module, x, context):
    """O = softmax(Q A^T / sqrt(D) + B2) softmax(A K^T / sqrt(D) + B1) V + DWC(V), A = pool(Q)."""
    grid = context.grid
    b1, b2 = position_bias(module.gather_bias, grid), position_bias(module.spread_bias, grid)
    images = []
    for image in x:
        q, k, v = project(module, image)
        a = pooled(q, grid, module.side)
        heads = []
        parts = zip(*(per_head(z, module.num_heads) for z in (q, k, v, a)), strict=True)
        for h, (q_h, k_h, v_h, a_h) in enumerate(parts):
            root = q_h.shape[-1] ** 0.5
            gather = (a_h @ k_h.T / root + (b1[h] if torch.is_tensor(b1) else 0)).softmax(-1)
            spread = (q_h @ a_h.T / root + (b2[h].T if torch.is_tensor(b2) else 0)).softmax(-1)
            heads.append(spread @ (gather @ v_h))
        o = torch.cat(heads, -1) + conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, grid)
        images.append(output(module, o))
    return torch.stack(images)
