"""Every built-in attention inside the tiny recipe: it trains, and the skeleton around it stays the same."""

from __future__ import annotations

import pytest
import torch
from backend_counts import model_counts

from attnbench.models import build_model
from attnbench.models.recipes import resolve
from attnbench.plugins import registry

BUILTINS = [name for name, provided in registry().backends.items() if provided.origin == "built-in"]
SIDE = 16  # 64 tokens: no default option of a backend needs more


def tiny(name: str):
    return resolve("tiny-dit", {"depth": 2, "attention": name})


@pytest.mark.parametrize("name", BUILTINS)
def test_forward_and_backward(name: str) -> None:
    """Images come out in shape and finite, and every attention parameter gets a gradient."""
    model = build_model(tiny(name), SIDE, 10)
    with torch.no_grad():
        for parameter in model.parameters():  # undo the zero initialisation
            parameter.add_(0.02 * torch.randn_like(parameter))
    x, t = torch.randn(3, 1, SIDE, SIDE), torch.tensor([30.0, 500.0, 970.0])
    losses: list[torch.Tensor] = []
    y = model(x, t, torch.tensor([1, 7, 10]), loss_sink=lambda _, loss: losses.append(loss))
    assert y.shape == x.shape
    sum(losses, y.square().mean()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    silent = {
        parameter
        for block in model.blocks
        for parameter, p in block.attn.named_parameters()
        if p.grad is None or not p.grad.any()
    }
    assert not silent


@pytest.mark.parametrize("name", BUILTINS)
def test_closed_form_agrees_with_both_counters(name: str) -> None:
    """At default options the full count is exact: closed form, fvcore and torch's counter."""
    closed, by_fvcore, by_torch = model_counts(name, side=SIDE)
    assert by_torch == pytest.approx(closed, rel=1e-3)
    assert by_fvcore == pytest.approx(closed, rel=1e-3)
