"""DyDiLA, eqs. 1-10 of arXiv:2601.13683, one token at a time."""

from __future__ import annotations

import torch

from references.pieces import conv_on_grid, output, per_head, phi, project

CASES = {
    "dydila-token": {},
    "dydila-map": {"mode": "map"},
    "dydila-map-per-map": {"mode": "map", "dwc_maps": "per_map"},
    "dydila-literal": {"normaliser": "none", "projection_router": "frozen", "factor_router": "frozen"},
    "dydila-tokens-switch": {
        "normaliser": "tokens",
        "projection_router": "switch",
        "factor_router": "switch",
        "dwc": "plain",
    },
    "dydila-rms-gates": {"normaliser": "rms", "factor_router": "unit_gate", "dwc": "none"},
    "dydila-focused": {"mode": "none", "kernel": "fixed", "dwc": "none"},
    "dydila-measured": {"mode": "none", "dwc": "none"},
    "dydila-projected": {"mode": "none", "query_key": "dynamic", "dwc": "single"},
}


# rounding Q flips an argmax, and an argmax is not continuous: one choice each in low-precision tests
def continuous(options):
    one = {} if options.get("kernel") == "fixed" else {"num_kernels": 1}
    return options | one | ({} if options.get("mode") == "none" else {"num_factors": 1})


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


def reference(module, x, context):
    """Eqs. 1-10, one token at a time."""
    grid = context.grid
    o, n_p = module.options, module.options.num_projectors
    gammas = module.gamma if o.kernel == "dynamic" else None
    lambdas = module.lam if o.mode != "none" else None
    tdos, values = [], []
    for image in x:
        q, k, v = shared(module, image)
        rows = {"q": q, "k": k} if o.query_key == "shared" else {}
        if o.mode != "none" or o.query_key == "dynamic":
            rows |= {"q'": [], "k'": []}
        for x_i in image if "q'" in rows else ():
            logits = x_i @ module.projection_router.weight[0]
            for name, part, bank in (("q'", logits[:n_p], 0), ("k'", logits[n_p:], n_p)):  # eqs. 1-2
                u = int(part.argmax())
                p = part.softmax(-1)[u]
                gate = {"frozen": 1.0, "unit_gate": p / p.detach(), "switch": p}[o.projection_router]
                rows[name].append(x_i @ module.projectors[bank + u] * gate)
        z = {}
        for bank, name in enumerate(rows):  # eqs. 5-6
            focus = []
            for row in rows[name]:
                if o.kernel == "fixed":
                    gamma, gate = o.gamma_init, 1.0
                else:
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


def shared(module, image):
    """Q, K, V = X W_0, or V alone where Q and K are projected dynamically."""
    if module.options.query_key == "shared":
        return project(module, image)
    return None, None, image @ module.value.weight.T


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

    if o.mode == "none":  # Table 4's rungs: one Q and one K, shared or dynamic
        q, k = z.values()
        return attend(q, k, q, k), torch.zeros(len(v), 1, dtype=v.dtype)
    if o.mode == "token":
        q = z["q"] - factors(module, 0, z["q"], z["q'"], lambdas) * z["q'"]
        k = z["k"] - factors(module, 1, z["k"], z["k'"], lambdas) * z["k'"]
        return attend(q, k, z["q"], z["k"]), torch.zeros(len(v), 1, dtype=v.dtype)
    lam = factors(module, 0, z["q"], z["q'"], lambdas)
    first = attend(z["q"], z["k"], z["q"], z["k"])
    return first - lam * attend(z["q'"], z["k'"], z["q'"], z["k'"]), lam
