"""Kimi Delta Attention (arXiv:2510.26692), one token, one head and one direction at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from references.pieces import conv_on_grid, output, per_head, project, rms_norm

CASES = {
    "kda": {},
    "kda-forward": {"scan": "forward", "form": "recurrent", "qkv_bias": True},
    "kda-small-chunks": {"chunk_size": 4},
}


def delta_attention(q, k, v, alpha, beta):
    """Eq. 1: S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_(t-1) + beta_t k_t v_t^T, o_t = S_t^T q_t."""
    state, rows = torch.zeros(k.shape[-1], v.shape[-1], dtype=v.dtype), []
    identity = torch.eye(k.shape[-1], dtype=v.dtype)
    for t in range(len(q)):
        erase = identity - beta[t] * torch.outer(k[t], k[t])
        state = erase @ torch.diag(alpha[t]) @ state + beta[t] * torch.outer(k[t], v[t])
        rows.append(state.T @ q[t])
    return torch.stack(rows)


def l2_norm(z):
    return z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def reference(module, x, context):
    """Sec. 4: q, k, v by convolution, SiLU and L2 norm; alpha and beta; eq. 10."""
    scans, heads = module.options.scans, module.num_heads
    images = []
    for image in x:
        mixed = conv_on_grid(
            module.conv.conv.weight, None, torch.cat(project(module, image), -1), context.grid
        )
        parts = [per_head(z, heads) for z in F.silu(mixed).chunk(3, -1)]
        low, high = module.gate
        gates = per_head(image @ low.weight.T @ high.weight.T + high.bias, heads)
        low, high = module.forget
        logits = F.softplus(image @ low.weight.T @ high.weight.T + module.decay.bias.flatten())
        forget = [per_head(z, heads) for z in logits.chunk(scans, -1)]  # by direction and head [N, D]
        step = torch.sigmoid(image @ module.step.weight.T)  # [N, S H]
        outputs = []
        for h, (q, k, v, g) in enumerate(zip(*parts, gates, strict=True)):
            q, k, found = l2_norm(q) / q.shape[-1] ** 0.5, l2_norm(k), []
            for s in range(scans):
                alpha = torch.exp(-module.decay.log_rate[s, h].exp() * forget[s][h])
                tensors = (q, k, v, alpha, step[:, s * heads + h])
                if s == 0:
                    found.append(delta_attention(*tensors))
                else:
                    found.append(delta_attention(*(z.flip(0) for z in tensors)).flip(0))
            outputs.append(rms_norm(module.norm, sum(found) / scans) * torch.sigmoid(g))
        images.append(output(module, torch.cat(outputs, -1)))
    return torch.stack(images)
