"""Multiply-adds of whole recipes: closed form and two counters agree, at the published sizes."""

from __future__ import annotations

import pytest
import torch

from attnbench.models import build_model, closed_form_macs, fuse_for_inference
from attnbench.models.recipes import load_recipes
from attnbench.models.resolution import input_size
from attnbench.plugins import registry
from attnbench.profiling.counters import check_agreement, count_with_fvcore, count_with_torch
from attnbench.specs import AttentionSpec, ModelConfig


def three_counts(config: ModelConfig, size: int) -> tuple[int, int, int]:
    model = fuse_for_inference(build_model(config, size, 10, device="meta").to("meta"))
    x = torch.empty(1, config.in_channels, size, size, device="meta")
    inputs = (x, torch.empty(1, device="meta"), torch.empty(1, dtype=torch.int64, device="meta"))
    by_fvcore, by_torch = count_with_fvcore(model, inputs), count_with_torch(model, inputs)
    return closed_form_macs(config, size).full, by_fvcore.macs, by_torch.macs


@pytest.mark.parametrize("resolution", [256, 512])
@pytest.mark.parametrize("name", ["dit-s", "sana-s", "dydi-lit-s"])
def test_recipes_agree(name, resolution):
    """The closed form of a published size is what executes, by both counters, to the last multiply-add."""
    config = load_recipes()[name]
    counts = three_counts(config, input_size(config, resolution))
    assert len(set(counts)) == 1, counts


@pytest.mark.parametrize("position", ["sincos", "learned", "none"])
@pytest.mark.parametrize("attention", sorted(registry().backends))
def test_every_backend_agrees(attention, position):
    """Each backend's closed form holds in a small model, whatever the position embedding."""
    config = load_recipes()["tiny-dit"].model_copy(
        update={"attention": AttentionSpec(name=attention), "position_embedding": position, "depth": 2}
    )
    check_agreement(*three_counts(config, 16))
