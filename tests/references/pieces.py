"""Steps that several papers share, one token and one head at a time; nothing here calls the package."""

from __future__ import annotations

import torch


def per_head(z, num_heads):
    """[N, C] -> list of [N, D]."""
    return list(z.chunk(num_heads, dim=-1))


def project(module, x):
    """Q, K, V = X W_0, each [N, C]."""
    z = x @ module.qkv.qkv.weight.T
    if module.qkv.qkv.bias is not None:
        z = z + module.qkv.qkv.bias
    return z.split(x.shape[-1], dim=-1)


def output(module, o):
    return o @ module.out.weight.T + module.out.bias


def conv_on_grid(weight, bias, v, grid):
    """A depthwise convolution with zero padding, one output token at a time: weight [c, 1, kh, kw]."""
    height, width = grid
    channels, (kh, kw) = weight.shape[0], weight.shape[2:]
    rows = []
    for i in range(height):
        for j in range(width):
            total = torch.zeros(v.shape[-1], dtype=v.dtype)
            for a in range(kh):
                for b in range(kw):
                    y, x = i + a - kh // 2, j + b - kw // 2
                    if 0 <= y < height and 0 <= x < width:
                        w = weight[:, 0, a, b].repeat(v.shape[-1] // channels)
                        total = total + w * v[y * width + x]
            if bias is not None:
                total = total + bias.repeat(v.shape[-1] // channels)
            rows.append(total)
    return torch.stack(rows)


def eq4(q, k, v, eps):
    """Eq. 4 for one head: o_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps)."""
    state = sum(torch.outer(k_j, v_j) for k_j, v_j in zip(k, v, strict=True))
    mass = sum(k)
    return torch.stack([(q_i @ state) / (q_i @ mass + eps) for q_i in q])


def rms_norm(norm, z):
    return z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def phi(row, gamma):
    """Eq. 5 for one row, with phi(nonpositive row) = 0."""
    u = row.clamp_min(0)
    if not bool((u > 0).any()):
        return u * 0
    power = torch.where(u > 0, u.clamp_min(1e-300) ** gamma, 0.0)
    return power / power.norm() * u.norm()


def tiles_of(grid, size):
    """The tokens of every size x size tile, row by row; those at the far borders may have fewer."""
    height, width = grid
    return [
        [i * width + j for i in range(a, min(a + size, height)) for j in range(b, min(b + size, width))]
        for a in range(0, height, size)
        for b in range(0, width, size)
    ]


def visits(name, grid, layer_idx):
    """Tokens as a sequential model's layer visits them; ZigMa's as a walk that turns at each wall."""
    height, width = grid
    if name == "raster" or (name == "transposed" and layer_idx % 2 == 0):
        return list(range(height * width))
    if name == "transposed":
        return [y * width + x for x in range(width) for y in range(height)]
    corner, by_column = divmod(layer_idx % 8, 2)
    y, x = (height - 1) * (corner // 2), (width - 1) * (corner % 2)
    dy, dx = (1 if y == 0 else -1), (1 if x == 0 else -1)
    path = [y * width + x]
    while len(path) < height * width:
        if by_column:
            if 0 <= y + dy < height:
                y += dy
            else:
                x, dy = x + dx, -dy
        elif 0 <= x + dx < width:
            x += dx
        else:
            y, dx = y + dy, -dx
        path.append(y * width + x)
    return path


def causal_conv(weight, bias, tokens):
    """A depthwise convolution of [N, C] over a token and those before it, then SiLU; weight [C, 1, k, 1]."""
    size = weight.shape[2]
    rows = []
    for t in range(len(tokens)):
        total = bias
        for i in range(size):
            if t - i >= 0:
                total = total + weight[:, 0, size - 1 - i, 0] * tokens[t - i]
        rows.append(total * torch.sigmoid(total))
    return torch.stack(rows)


def softplus(z):
    return torch.log1p(torch.exp(z))


def silu(z):
    return z * torch.sigmoid(z)
