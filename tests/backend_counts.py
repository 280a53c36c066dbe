"""One attention module counted three ways on the meta device: closed form, fvcore, torch."""

from __future__ import annotations

import torch
from torch import nn

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry
from attnbench.profiling.counters import count_with_fvcore, count_with_torch


class Alone(nn.Module):
    """A module with its context filled in, as the counters want it."""

    def __init__(self, attention, grid):
        super().__init__()
        self.attention, self.context = attention, AttentionContext(grid=grid)

    def forward(self, x):
        return self.attention(x, self.context)


def module_counts(name, options, grid=(7, 9), dim=24, num_heads=3):
    """Multiply-adds of one attention: (closed form in full, fvcore, torch's counter)."""
    backend = registry().backend(name)
    site = AttentionSite(dim=dim, num_heads=num_heads, grid=grid)
    chosen = backend.options(**options)
    with torch.device("meta"):
        model = Alone(backend.build(site, chosen), grid).eval()
        x = torch.empty(1, site.num_tokens, dim)
    by_fvcore, by_torch = count_with_fvcore(model, (x,)), count_with_torch(model, (x,))
    return backend.macs(site, chosen).full, by_fvcore.macs, by_torch.macs


def built(name, options=None, *, seed=0, dtype=torch.float64, **site):
    """A backend's module at a site, drawn from its own seed: the same projections for every backend."""
    backend = registry().backend(name)
    torch.manual_seed(seed)
    return backend.build(AttentionSite(**site), backend.options(**(options or {}))).to(dtype)
