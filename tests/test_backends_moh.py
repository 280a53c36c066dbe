"""Mixture-of-Head attention: its gates, its balance loss, and which head counts it refuses."""

from __future__ import annotations

import pytest
import torch
from backend_counts import model_counts
from pydantic import ValidationError

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("moh")
SITE = AttentionSite(dim=24, num_heads=6, grid=(4, 4), depth=2)


def build(**options):
    torch.manual_seed(0)
    return BACKEND.build(SITE, BACKEND.options(**options)).double()


def run(module, x):
    """Output, recorded diagnostics and auxiliary losses of one forward pass."""
    records, losses = {}, {}
    context = AttentionContext(grid=(4, 4), recorder=records.__setitem__, loss_sink=losses.__setitem__)
    return module(x, context), records, losses


def test_every_token_keeps_top_k_routed_heads():
    """The recorded choice has k heads for each token, those of the largest router weights."""
    module = build(num_shared_heads=2, top_k=3)
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    mask = run(module, x)[1]["blocks.0.routed_heads"]
    logits = x @ module.routed_router.weight.T
    assert mask.shape == (2, 16, 4)
    assert mask.dtype == torch.bool
    assert (mask.sum(-1) == 3).all()
    assert not mask.gather(-1, logits.argmin(-1, keepdim=True)).any()


def test_gates_of_a_token_sum_to_the_number_of_active_heads():
    """Shared gates sum to w_0 n_s and routed ones to w_1 k, with w_0 + w_1 = 2."""
    module = build(num_shared_heads=2, top_k=3)
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    gates = module._gates(x, AttentionContext(grid=(4, 4)))
    groups = 2 * (x @ module.group_router.weight.T).softmax(-1)
    torch.testing.assert_close(gates[..., :2].sum(-1), 2 * groups[..., 0])
    torch.testing.assert_close(gates[..., 2:].sum(-1), 3 * groups[..., 1])


def test_balance_loss_is_the_released_formula():
    """mean(me ce) E^2 times 0.01, averaged over the model's blocks; none in eval mode or at weight 0."""
    module = build(num_shared_heads=2, top_k=2)
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    p = (x @ module.routed_router.weight.T).softmax(-1).flatten(0, 1)
    _, records, losses = run(module, x)
    ce = records["blocks.0.routed_heads"].flatten(0, 1).double().mean(0)
    expected = 0.01 * (p.mean(0) * ce).mean() * 4**2 / SITE.depth
    torch.testing.assert_close(losses["blocks.0.balance"], expected)
    assert run(module.eval(), x)[2] == {}
    assert run(build(balance_weight=0.0), x)[2] == {}


def test_no_routed_head_is_balanced():
    """A weight of the balance loss is refused where no head is routed; the default and 0 say nothing."""
    with pytest.raises(ValidationError, match=r"balance_weight: 0\.1 does nothing with top_k: 0"):
        BACKEND.options(num_shared_heads=6, top_k=0, balance_weight=0.1)
    for given in ({}, {"balance_weight": 0.0}):
        BACKEND.options(num_shared_heads=6, top_k=0, **given)


def test_a_top_1_router_learns_from_the_balance_loss_alone():
    """Renormalised, the only gate is 1: the output gives W_g no gradient, the loss does."""
    module = build(num_shared_heads=2, top_k=1)
    weight = module.routed_router.weight
    y, _, losses = run(module, torch.randn(2, 16, 24, dtype=torch.float64))
    from_output = torch.autograd.grad(y.square().sum(), weight, retain_graph=True)[0]
    from_loss = torch.autograd.grad(losses["blocks.0.balance"], weight)[0]
    assert from_output.abs().max() < 1e-10 < 1e-6 < from_loss.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_does_not_reach_the_router(dtype):
    """With bf16 weights, and under bf16 autocast, router weights are exact to fp32's rounding."""
    router = build().routed_router.to(dtype)
    x = torch.randn(2, 16, 24).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.float32):
        p = router(x)
    exact = (x.double() @ router.weight.double().T).softmax(-1)
    assert p.dtype == torch.float32
    # 24 products and their sum, each at most |logit| < 8, through a softmax of slope below 1
    assert (p - exact).abs().max() < 24 * 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_shared_heads": 7}, "choose at most 6"),
        ({"num_shared_heads": 2, "top_k": 5}, "choose 1 to 4"),
        ({"num_shared_heads": 2, "top_k": 0}, "choose 1 to 4"),
        ({"num_shared_heads": 6, "top_k": 1}, "choose 0"),
    ],
)
def test_head_counts_that_do_not_fit_are_refused(options, told):
    """The reason names what was asked and what the model's heads allow."""
    assert told in BACKEND.supports(SITE, BACKEND.options(**options), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(("shared", "top_k"), [(2, 1), (1, 3), (0, 2), (4, 0)])
def test_closed_form_is_what_executes(shared, top_k):
    """Both counters see the closed form, routers included, to the last multiply-add."""
    options = {"num_shared_heads": shared, "top_k": top_k}
    closed, by_fvcore, by_torch = model_counts("moh", options, side=16)
    assert closed == by_fvcore == by_torch
