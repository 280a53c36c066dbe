"""An attention alone or in the tiny recipe, counted three ways: closed form, fvcore, torch."""

from __future__ import annotations

import torch
from torch import nn

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.models import build_model, closed_form_macs, fuse_for_inference
from attnbench.models.recipes import resolve
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


def model_counts(name, options=None, *, side=16):
    """Multiply-adds of two tiny blocks on side x side pixels, counted in the same three ways."""
    config = resolve("tiny-dit", {"depth": 2, "attention": {"name": name, "options": options or {}}})
    with torch.device("meta"):
        inputs = (torch.empty(1, 1, side, side), torch.empty(1), torch.empty(1, dtype=torch.int64))
    model = fuse_for_inference(build_model(config, side, 10, device="meta"))
    by_fvcore, by_torch = count_with_fvcore(model, inputs), count_with_torch(model, inputs)
    return closed_form_macs(config, side).full, by_fvcore.macs, by_torch.macs


def built(name, options=None, *, seed=0, dtype=torch.float64, **site):
    """A backend's module at a site, drawn from its own seed: the same projections for every backend."""
    backend = registry().backend(name)
    torch.manual_seed(seed)
    return backend.build(AttentionSite(**site), backend.options(**(options or {}))).to(dtype)
