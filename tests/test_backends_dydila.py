"""DyDiLA's parts: what an option without its part is told, equal starts, the balance loss."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry


def options(**given):
    return registry().backend("dydila").options(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"query_key": "dynamic"}, "query_key: dynamic needs mode: none"),
        ({"mode": "none", "num_factors": 3}, "num_factors: 3 does nothing with mode: none"),
        ({"mode": "none", "balance_weight": 0.1}, "balance_weight: 0.1 does nothing"),
        ({"kernel": "fixed", "num_kernels": 5}, "num_kernels: 5 does nothing"),
        ({"dwc_maps": "per_map"}, "dwc_maps: per_map does nothing with mode: token"),
        ({"mode": "map", "dwc_maps": "per_map", "dwc": "none"}, "does nothing with mode: map, dwc: none"),
        ({"normaliser": "tokens", "eps": 1e-4}, "eps: 0.0001 does nothing with normaliser: tokens"),
    ],
)
def test_options_of_absent_parts_are_refused(given, says):
    """Two cases that differ in an option that does nothing would be one model trained twice."""
    with pytest.raises(ValidationError, match=says):
        options(**given)


def test_a_frozen_router_is_not_balanced():
    """The balance loss has a gradient on the router's weights: with it, frozen would say what is not so."""
    with pytest.raises(ValidationError, match=r"would train the router .* set balance_weight: 0, or"):
        options(projection_router="frozen", balance_weight=0.1)
    module = (
        registry()
        .backend("dydila")
        .build(
            AttentionSite(dim=12, num_heads=3, grid=(4, 4)),
            options(projection_router="frozen", factor_router="frozen"),
        )
    )
    losses = []
    context = AttentionContext(grid=(4, 4), loss_sink=lambda name, value: losses.append(value))
    module(torch.randn(2, 16, 12), context).square().sum().backward()
    routers = {name for name, _ in module.named_parameters() if "router" in name}
    assert {name for name, p in module.named_parameters() if p.grad is None} == routers
    assert not losses


def test_rungs_of_the_ablation_start_with_values_of_one_scale():
    """Replacing the shared projections by dynamic ones does not change how large V starts."""
    site = AttentionSite(dim=256, num_heads=1, grid=(4, 4))
    build = registry().backend("dydila").build
    torch.manual_seed(0)
    shared = build(site, options(mode="none")).qkv.qkv
    torch.nn.init.xavier_uniform_(shared.weight)  # as the skeleton does
    alone = build(site, options(mode="none", query_key="dynamic")).value
    assert alone.weight.std().item() == pytest.approx(shared.weight[512:].std().item(), rel=0.02)


def test_balance_loss_is_the_switch_transformers():
    """n_P sum_e (share of tokens) (mean probability), averaged over the routers of Q', K'; 1 if balanced."""
    site = AttentionSite(dim=12, num_heads=3, grid=(4, 4))
    torch.manual_seed(0)
    module = registry().backend("dydila").build(site, options(balance_weight=0.1)).double()
    x = torch.randn(3, 16, 12, dtype=torch.float64)
    losses = {}
    module(x, AttentionContext(grid=(4, 4), loss_sink=losses.__setitem__))
    p = (
        (x.flatten(0, 1) @ module.projection_router.weight[0]).unflatten(-1, (2, 3)).softmax(-1)
    )  # [T, 2, n_P]
    expected = 0.0
    for bank in p.unbind(1):
        for e in range(3):
            expected += 3 * (bank.argmax(-1) == e).double().mean() * bank[:, e].mean() / 2
    torch.testing.assert_close(losses["blocks.0.balance"], 0.1 * expected)
