"""Slow float64 attentions that read like the papers: one token, one head at a time.

Each takes the backend's own module (for its parameters, in float64), x [B, N, C] and the grid, and
returns [B, N, C]. Nothing here calls the package's maths.
"""

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


def softmax(module, x, grid):
    """Eq. 3: Sim(q, k) = exp(q . k / sqrt(D))."""
    images = []
    for image in x:
        heads = []
        for q, k, v in zip(*(per_head(z, module.num_heads) for z in project(module, image)), strict=True):
            rows = []
            for q_i in q:
                sim = torch.exp(torch.stack([q_i @ k_j for k_j in k]) / q.shape[-1] ** 0.5)
                rows.append(sum(s * v_j for s, v_j in zip(sim, v, strict=True)) / sim.sum())
            heads.append(torch.stack(rows))
        images.append(output(module, torch.cat(heads, -1)))
    return torch.stack(images)


def eq4(q, k, v, eps):
    """Eq. 4 for one head: o_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps)."""
    state = sum(torch.outer(k_j, v_j) for k_j, v_j in zip(k, v, strict=True))
    mass = sum(k)
    return torch.stack([(q_i @ state) / (q_i @ mass + eps) for q_i in q])


def rms_norm(norm, z):
    return z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def linear(module, x, grid):
    """Sana: phi = ReLU."""
    images = []
    for image in x:
        q, k, v = project(module, image)
        if module.options.qk_norm:
            q, k = rms_norm(module.q_norm, q), rms_norm(module.k_norm, k)
        q, k = q.clamp_min(0), k.clamp_min(0)
        heads = zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True)
        images.append(output(module, torch.cat([eq4(*h, module.options.eps) for h in heads], -1)))
    return torch.stack(images)


def phi(row, gamma):
    """Eq. 5 for one row, with phi(nonpositive row) = 0."""
    u = row.clamp_min(0)
    if not bool((u > 0).any()):
        return u * 0
    power = torch.where(u > 0, u.clamp_min(1e-300) ** gamma, 0.0)
    return power / power.norm() * u.norm()


def focused(module, x, grid):
    """Flatten Transformer's released forward, in its own order of operations."""
    scale = torch.log1p(torch.exp(module.scale))
    images = []
    for image in x:
        q, k, v = project(module, image)
        k = k + module.position

        def kernel(z):
            z = (z.clamp_min(0) + 1e-6) / scale
            return torch.stack([phi(row, module.options.power) for row in z])

        q, k = kernel(q), kernel(k)
        n = len(image)
        heads = []
        for q_h, k_h, v_h in zip(*(per_head(z, module.num_heads) for z in (q, k, v)), strict=True):
            z = 1 / (q_h @ k_h.mean(0) + module.options.eps)
            heads.append(q_h @ ((k_h.T * n**-0.5) @ (v_h * n**-0.5)) * z[:, None])
        o = torch.cat(heads, -1) + conv_on_grid(module.conv.conv.weight, module.conv.conv.bias, v, grid)
        images.append(output(module, o))
    return torch.stack(images)


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


def agent(module, x, grid):
    """O = softmax(Q A^T / sqrt(D) + B2) softmax(A K^T / sqrt(D) + B1) V + DWC(V), A = pool(Q)."""
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


def choose(logits, values, training):
    """One token's argmax over scalars with the router's training rule: (value, gate)."""
    p = logits.softmax(-1)
    u = int(logits.argmax())
    if training == "straight_through":
        weights = torch.eye(len(p), dtype=p.dtype)[u] + p - p.detach()
        return (weights * values.detach()).sum() + values[u] - values[u].detach(), 1.0
    if training == "unit_gate":
        return values[u], p[u] / p[u].detach()
    if training == "switch":
        return values[u], p[u]
    return values[u], 1.0


def batch_norm(conv, norm, v_images, grid, train):
    """A bias-free convolution, then BatchNorm over all tokens of all images."""
    z = torch.stack([conv_on_grid(conv.weight, None, v, grid) for v in v_images])
    mean = z.mean((0, 1)) if train else norm.running_mean
    var = z.var((0, 1), unbiased=False) if train else norm.running_var
    return (z - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def dwc(module, which, v_images, grid):
    kind = module.options.dwc
    if kind == "none":
        return 0.0
    conv = module.convs[which]
    if kind == "plain":
        return torch.stack([conv_on_grid(conv.conv.weight, conv.conv.bias, v, grid) for v in v_images])
    return sum(batch_norm(b.conv, b.norm, v_images, grid, module.training) for b in conv.branches)


def dydila(module, x, grid):
    """Eqs. 1-10, one token at a time."""
    o, n_p = module.options, module.options.num_projectors
    gammas, lambdas = module.gamma, module.lam
    tdos, values = [], []
    for image in x:
        q, k, v = project(module, image)
        rows = {name: [] for name in ("q", "k", "q'", "k'")}
        for i, x_i in enumerate(image):
            logits = x_i @ module.projection_router.weight[0]
            for name, part, bank in (("q'", logits[:n_p], 0), ("k'", logits[n_p:], n_p)):  # eqs. 1-2
                u = int(part.argmax())
                p = part.softmax(-1)[u]
                gate = {"frozen": 1.0, "unit_gate": p / p.detach(), "switch": p}[o.projection_router]
                rows[name].append(x_i @ module.projectors[bank + u] * gate)
            rows["q"].append(q[i])
            rows["k"].append(k[i])
        z = {}
        for bank, name in enumerate(("q", "k", "q'", "k'")):  # eqs. 5-6
            focus = []
            for row in rows[name]:
                gamma, gate = choose(row @ module.kernel_router.weight[bank], gammas, o.factor_router)
                focus.append(phi(row, gamma) * gate)
            z[name] = torch.stack(focus)
        tdos.append(differential(module, z, v, lambdas))
        values.append(v)
    v_images = torch.stack(values)
    tdo = torch.stack([first for first, _ in tdos])
    lam = torch.stack([second for _, second in tdos])
    if o.normaliser == "rms":
        tdo = tdo / (tdo.square().mean(-1, keepdim=True) + o.eps).sqrt()
    if o.mode == "map" and o.dwc_maps == "per_map":
        tdo = tdo - lam * dwc(module, 1, v_images, grid)
    return output(module, tdo + dwc(module, 0, v_images, grid))


def factors(module, bank, a, b, lambdas):
    """Eq. 7: lambda_i from concat(a_i, b_i)."""
    chosen = []
    for a_i, b_i in zip(a, b, strict=True):
        logits = torch.cat([a_i, b_i]) @ module.factor_router.weight[bank]
        value, gate = choose(logits, lambdas, module.options.factor_router)
        chosen.append(value * gate)
    return torch.stack(chosen)[:, None]


def differential(module, z, v, lambdas):
    """Eq. 8 (token) or the two maps of eq. 10; returns ([N, C], lambda of the map or 0)."""
    o, heads = module.options, module.num_heads

    def attend(q, k, mass_q, mass_k):
        out = []
        for q_h, k_h, v_h, mq, mk in zip(
            *(per_head(t, heads) for t in (q, k, v, mass_q, mass_k)), strict=True
        ):
            y = q_h @ sum(torch.outer(k_j, v_j) for k_j, v_j in zip(k_h, v_h, strict=True))
            if o.normaliser == "undifferenced":
                y = y / (mq @ mk.sum(0) + o.eps)[:, None]
            if o.normaliser == "tokens":
                y = y / len(v)
            out.append(y)
        return torch.cat(out, -1)

    if o.mode == "token":
        q = z["q"] - factors(module, 0, z["q"], z["q'"], lambdas) * z["q'"]
        k = z["k"] - factors(module, 1, z["k"], z["k'"], lambdas) * z["k'"]
        return attend(q, k, z["q"], z["k"]), torch.zeros(len(v), 1, dtype=v.dtype)
    lam = factors(module, 0, z["q"], z["q'"], lambdas)
    first = attend(z["q"], z["k"], z["q"], z["k"])
    return first - lam * attend(z["q'"], z["k'"], z["q'"], z["k'"]), lam
