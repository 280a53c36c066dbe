"""Weights a training may start from, checked against its model, and a fingerprint for its key."""

from __future__ import annotations

from pathlib import Path

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.exchange.diffusers_format import from_diffusers
from attnbench.exchange.exported import FORMAT, WEIGHTS, Exported, read_config, read_exported, sha256
from attnbench.exchange.original_dit import from_original
from attnbench.exchange.weight_files import weights_path
from attnbench.specs import ModelConfig
from attnbench.stages.checkpoint import ModelInput


def initial_weights(source: Path, config: ModelConfig, model_input: ModelInput) -> dict[str, torch.Tensor]:
    """Return the weights in `source` for a model of `config`, to be loaded strictly.

    `source` is an exported folder, a local folder of diffusers, or a .pt file of facebookresearch/DiT.
    Raises UserInputError (DataError for damaged files) when architecture, input or classes differ.
    """
    exported = _read(source, config, model_input.num_classes)
    found = exported.config
    told = []
    if found.model.content() != config.content():
        ours, theirs = config.content(), found.model.content()
        told = [f"{name} {theirs[name]!r} (here {ours[name]!r})" for name in _differing(ours, theirs)]
    if tuple(found.input.shape) != tuple(model_input.shape):
        told.append(f"input {list(found.input.shape)} (here {list(model_input.shape)})")
    if found.input.num_classes != model_input.num_classes:
        told.append(f"{found.input.num_classes} classes (here {model_input.num_classes})")
    if told:
        raise UserInputError(
            f"{source} holds other weights than {config.name} takes: {', '.join(told)}; for another "
            "attention make a folder with `attnbench transfer` first"
        )
    return dict(exported.weights)


def _differing(ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    training_only = {"class_dropout"}  # changes no weight
    return [name for name in ours if ours[name] != theirs.get(name) and name not in training_only]


def _read(source: Path, config: ModelConfig, num_classes: int) -> Exported:
    if source.is_file():
        return from_original(source, config, num_classes=num_classes)
    if is_exported(source):
        return read_exported(source)
    return from_diffusers(source, config, num_classes)


def is_exported(source: Path) -> bool:
    """Return whether a folder was written by `attnbench export`."""
    try:
        return read_config(source).format == FORMAT
    except DataError:
        return False


def weights_fingerprint(source: Path) -> str:
    """Return 64 hex digits that change when the weights in `source` do: part of a training's key.

    Raises DataError when there are none.
    """
    if source.is_file():
        return sha256(source)
    if (source / WEIGHTS).is_file():
        return sha256(source / WEIGHTS)
    home = source / "transformer" if (source / "transformer").is_dir() else source
    return sha256(weights_path(home))
