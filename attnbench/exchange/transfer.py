"""A model of another attention, recipe, depth, grid or number of classes, from an exported one's weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from attnbench.errors import UserInputError
from attnbench.exchange.config import ExportedConfig, TransferOrigin
from attnbench.exchange.exported import Exported
from attnbench.exchange.loading import build_unfused
from attnbench.exchange.trained import origins
from attnbench.models.options import with_all_options
from attnbench.plugins import registry
from attnbench.specs import GrowthSpec, ModelConfig
from attnbench.stages.training.block_origins import block_origins, promises_the_same
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.growth import grown, require_preserved
from attnbench.stages.training.inheritance import SHELL, TransferReport, transfer

__all__ = ["TransferReport", "grouped", "transfer", "transferred"]


def transferred(
    exported: Exported,
    config: ModelConfig,
    *,
    num_classes: int | None = None,
    side: int | None = None,
    seed: int = 0,
    growth: GrowthSpec | None = None,
) -> tuple[Exported, TransferReport]:
    """Build `config` and transfer the source's weights into it.

    It is built for `num_classes` classes and inputs of `side` x `side`, by default the source's. What is not
    copied is initialised from `seed`; that are the embeddings of all classes where their number is another.
    With `growth` it is deeper than the source, whose tensors then count under their names in the target: a
    copied block's count as copied, too. Raises UserInputError when the two differ in a size of the shell, and
    where one that grew and differs in nothing else does not compute what its source does.
    """
    source = exported.config
    weights: Mapping[str, torch.Tensor] = exported.weights
    deeper, blocks = source.model, list[int | None](range(config.depth))
    if growth is not None:
        deeper = source.model.model_copy(update={"depth": config.depth})
    _check_shells(deeper, config)
    if growth is not None:
        blocks = [origin.block for origin in block_origins(source.model, config, growth)]
        weights = grown(weights, source.model, config, growth)
    same = _same_attention(source.model, config, blocks)
    channels, height, width = source.input.shape
    shape = (channels, side or height, side or width)
    classes = source.input.num_classes if num_classes is None else num_classes
    described = ExportedConfig(
        model=config,
        input=ModelInput(shape=shape, num_classes=classes),
        class_names=source.class_names if classes == source.input.num_classes else None,
        objective=source.objective,
        codec=source.codec,
        backends=origins(config.attention_names()),
        seed=seed,
        data=source.data,
    )
    model = build_unfused(described, seed)
    report = transfer(weights, model, same)
    all_moved = not report.left and len(same) == sum(block is not None for block in blocks)
    if growth is not None and promises_the_same(source.model, growth) and all_moved:
        require_preserved(model, exported.weights, source.model, side=shape[1], num_classes=classes)
    origin = TransferOrigin(
        weights_sha256=source.weights_sha256,
        recipe=source.model.name,
        attention=source.attention,
        copied=len(report.copied),
        left=len(report.left),
        missing=len(report.missing),
        growth=growth,
    )
    described = described.model_copy(update={"transferred_from": origin})
    return Exported(config=described, weights=model.state_dict()), report


def _same_attention(source: ModelConfig, target: ModelConfig, blocks: list[int | None]) -> frozenset[int]:
    """Return the target's blocks whose attention is that of the source's block they come from."""
    theirs, ours = (with_all_options(each, registry()) for each in (source, target))
    return frozenset(
        place
        for place, block in enumerate(blocks)
        if block is not None
        and block < source.depth
        and _content(theirs, block) == _content(ours, place)
        and (source.dim, source.num_heads) == (target.dim, target.num_heads)
    )


def _content(model: ModelConfig, block: int) -> tuple[str, dict[str, Any]]:
    spec = model.attention_at(block)
    return spec.name, spec.options


def _check_shells(source: ModelConfig, target: ModelConfig) -> None:
    """Raise UserInputError listing the sizes of the shell in which two models differ."""
    told = [
        f"{name} {getattr(source, name)} there and {getattr(target, name)} in {target.name}"
        for name in SHELL
        if getattr(source, name) != getattr(target, name)
    ]
    if told:
        raise UserInputError(
            f"the source and the target must share their shell, but they have {', '.join(told)}; choose a "
            "recipe of the same sizes, or leave out --model to keep the source's; for more blocks there is "
            "--growth"
        )


def grouped(names: Iterable[str]) -> dict[str, int]:
    """Count names that differ only in the number of the block: `blocks.*.attn.out.weight`: 12."""
    counts: dict[str, int] = {}
    for name in names:
        shown = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
        counts[shown] = counts.get(shown, 0) + 1
    return counts
