"""A model with another attention, recipe, grid or number of classes from the weights of an exported one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attnbench.errors import UserInputError
from attnbench.exchange.config import ExportedConfig, TransferOrigin
from attnbench.exchange.exported import Exported
from attnbench.exchange.loading import build_unfused
from attnbench.exchange.trained import origins
from attnbench.specs import ModelConfig
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.inheritance import SHELL, TransferReport, transfer

__all__ = ["TransferReport", "grouped", "transfer", "transferred"]


def transferred(
    exported: Exported,
    config: ModelConfig,
    *,
    num_classes: int | None = None,
    side: int | None = None,
    seed: int = 0,
) -> tuple[Exported, TransferReport]:
    """Build `config` and transfer the source's weights into it.

    It is built for `num_classes` classes and inputs of `side` x `side`, by default the source's. What is not
    copied is initialised from `seed`; that are the embeddings of all classes where their number is another.
    Raises UserInputError when the two differ in a size of the shell.
    """
    source = exported.config
    _check_shells(source.model, config)
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
    report = transfer(exported.weights, model)
    origin = TransferOrigin(
        weights_sha256=source.weights_sha256,
        recipe=source.model.name,
        attention=source.attention,
        copied=len(report.copied),
        left=len(report.left),
        missing=len(report.missing),
    )
    described = described.model_copy(update={"transferred_from": origin})
    return Exported(config=described, weights=model.state_dict()), report


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
            "recipe of the same sizes, or leave out --model to keep the source's"
        )


def grouped(names: Iterable[str]) -> dict[str, int]:
    """Count names that differ only in the number of the block: `blocks.*.attn.out.weight`: 12."""
    counts: dict[str, int] = {}
    for name in names:
        shown = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
        counts[shown] = counts.get(shown, 0) + 1
    return counts
