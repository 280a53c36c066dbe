"""DyDiLA's parts: what an option without its part is told, and equal starts."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from attnbench.contract import AttentionSite
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
    ],
)
def test_options_of_absent_parts_are_refused(given, says):
    """Two cells that differ in an option that does nothing would be one model trained twice."""
    with pytest.raises(ValidationError, match=says):
        options(**given)


def test_rungs_of_the_ablation_start_with_values_of_one_scale():
    """Replacing the shared projections by dynamic ones does not change how large V starts."""
    site = AttentionSite(dim=256, num_heads=1, grid=(4, 4))
    build = registry().backend("dydila").build
    torch.manual_seed(0)
    shared = build(site, options(mode="none")).qkv.qkv
    torch.nn.init.xavier_uniform_(shared.weight)  # as the skeleton does
    alone = build(site, options(mode="none", query_key="dynamic")).value
    assert alone.weight.std().item() == pytest.approx(shared.weight[512:].std().item(), rel=0.02)
