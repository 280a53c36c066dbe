"""A DiT's sizes, read from a foreign file, as a ModelConfig; and whether a given config has the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.layouts import not_a_dit, qkv_bias_of
from attnbench.exchange.trained import origins
from attnbench.specs import AttentionSpec, FfnSpec, ModelConfig
from attnbench.stages.training.checkpoint import ModelInput


def dit_config(
    *,
    depth: int,
    dim: int,
    num_heads: int,
    patch_size: int,
    in_channels: int,
    learned_variance: bool,
    qkv_bias: bool,
) -> ModelConfig:
    """Return the config of a DiT of these sizes on latents; raises DataError for impossible ones."""
    try:
        return ModelConfig(
            name="imported-dit",
            summary="DiT whose weights were imported",
            depth=depth,
            dim=dim,
            num_heads=num_heads,
            patch_size=patch_size,
            in_channels=in_channels,
            learned_variance=learned_variance,
            ffn=FfnSpec(kind="mlp", ratio=4.0),
            attention=AttentionSpec(name="softmax", options={} if qkv_bias else {"qkv_bias": False}),
        )
    except ValueError as error:
        raise DataError(f"the sizes in the file make no DiT: {error}") from error


def describe_import(config: ModelConfig, side: int, num_classes: int, imported_from: str) -> ExportedConfig:
    """Return the description of imported weights: DDPM, nothing known about their training."""
    return ExportedConfig(
        model=config,
        input=ModelInput(shape=(config.in_channels, side, side), num_classes=num_classes),
        objective="ddpm",
        backends=origins({"softmax"}),
        imported_from=imported_from,
    )


def check_same(found: ModelConfig, wanted: ModelConfig, source: str) -> None:
    """Raise UserInputError listing every size in which the wanted model differs from the file's."""
    reasons = not_a_dit(wanted)
    if reasons:
        raise UserInputError(
            f"{source} holds a DiT, and model {wanted.name} is none: {'; '.join(reasons)}; import it as it "
            "is, then use `attnbench transfer`"
        )
    names = ("depth", "dim", "num_heads", "patch_size", "in_channels", "learned_variance")
    sizes = {name: (getattr(found, name), getattr(wanted, name)) for name in names}
    sizes["qkv_bias"] = (qkv_bias_of(found), qkv_bias_of(wanted))
    told = [
        f"{name} {theirs} (model {wanted.name}: {ours})"
        for name, (theirs, ours) in sizes.items()
        if theirs != ours
    ]
    if told:
        raise UserInputError(f"{source} has {', '.join(told)}; change the model to the file's sizes")


def class_rows(
    state: Mapping[str, torch.Tensor], num_classes: int | None, source: str
) -> tuple[dict[str, torch.Tensor], int]:
    """Return the state with a label table of `num_classes` + 1 rows, and that number; the last row is null.

    A table that was filled up with copies of the null row is cut; any other number of classes than
    the file's is refused with UserInputError.
    """
    name = "label_embed.table.weight"
    table = state[name]
    stored = len(table) - 1
    wanted = stored if num_classes is None else num_classes
    filled = wanted < stored and bool((table[wanted:] == table[-1]).all())
    if wanted != stored and not filled:
        raise UserInputError(
            f"{source} has {stored} classes, {wanted} are wanted; weights of other classes mean nothing "
            f"here: use {stored} classes"
        )
    return {**state, name: torch.cat([table[:wanted], table[-1:]])}, wanted
