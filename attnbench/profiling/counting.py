"""Parameters and multiply-adds of one row, on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from attnbench.models import build_model, fuse_for_inference
from attnbench.models.macs import ModelMacs, block_macs, macs_by_part
from attnbench.profiling.counters import check_agreement, count_with_fvcore, count_with_torch
from attnbench.specs import Measure, ModelConfig, Scope


def counts(
    config: ModelConfig, input_size: int, num_classes: int, scope: Scope, measure: Sequence[Measure]
) -> Iterator[dict[str, int]]:
    """Yield what is asked for of `params` and the multiply-adds, by the names of a ProfileRow's fields.

    Those of the whole model are confirmed by both counters; a scope within a block takes its closed form,
    which is part of that sum. Raises what the backend raises.
    """
    model = build_model(config, input_size, num_classes, device="meta").to("meta")
    if "params" in measure:
        yield {"params": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    if "macs" in measure:
        whole = _agreed(config, input_size, fuse_for_inference(model))
        if scope in ("attention", "block"):
            block = block_macs(config, input_size, config.depth // 2)
            total, attention, blocks = (
                block.attention if scope == "attention" else block.total,
                block.attention,
                block.total,
            )
        else:
            total, attention, blocks = whole.total, whole.attention, whole.blocks
        yield {
            "macs_paper": total.paper,
            "macs_full": total.full,
            "attention_macs": attention.full,
            "block_macs": blocks.full,
        }


def _agreed(config: ModelConfig, input_size: int, model: torch.nn.Module) -> ModelMacs:
    """Return the closed form once both counters have confirmed its full count."""
    with torch.device("meta"):
        inputs = (
            torch.empty(1, config.in_channels, input_size, input_size),
            torch.empty(1),
            torch.empty(1, dtype=torch.int64),
        )
    counted = macs_by_part(config, input_size)
    by_fvcore, by_torch = count_with_fvcore(model, inputs), count_with_torch(model, inputs)
    check_agreement(counted.total.full, by_fvcore.macs, by_torch.macs)
    return counted
