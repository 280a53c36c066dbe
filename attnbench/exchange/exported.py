"""The exported folder: model.safetensors, config.json and README.md, written whole and read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from attnbench.errors import DataError
from attnbench.exchange.card import model_card
from attnbench.exchange.config import FORMAT, ExportedConfig
from attnbench.exchange.folders import new_folder, read_bytes, writing
from attnbench.stages.training.initial_weights import CONFIG, WEIGHTS
from attnbench.storage.hashing import file_sha256

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model as data: its description and its named weights, on the CPU."""

    config: ExportedConfig
    weights: Mapping[str, torch.Tensor]


def write_exported(exported: Exported, folder: Path, *, force: bool = False) -> ExportedConfig:
    """Write a self-contained folder and return its config.json with the weights' hash.

    Raises UserInputError where the place is taken (`force` replaces an earlier export) and StorageError.
    """
    with new_folder(folder, CONFIG, force=force) as temporary, writing(folder):
        alone = {name: tensor.detach().cpu().clone() for name, tensor in exported.weights.items()}
        save_file(alone, temporary / WEIGHTS, {"format": "pt"})
        config = exported.config.model_copy(update={"weights_sha256": file_sha256(temporary / WEIGHTS)})
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(model_card(config), encoding="utf-8")
    return config


def read_exported(folder: Path) -> Exported:
    """Read an exported folder; raises DataError for a foreign, damaged or incomplete one."""
    config = read_config(folder)
    content = read_bytes(folder / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != config.weights_sha256:
        raise DataError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} describes (its SHA-256 differs): it is cut "
            "short, damaged or replaced; export the model again"
        )
    try:
        return Exported(config=config, weights=load(content))
    except SafetensorError as error:
        raise DataError(f"{folder / WEIGHTS} cannot be read ({error}); export the model again") from error


def read_config(folder: Path) -> ExportedConfig:
    """Read config.json alone; raises DataError."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"no exported model in {folder}: {CONFIG} is missing; `attnbench export` writes one")
    content = read_bytes(path)
    try:
        form = json.loads(content).get("format")
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not JSON of an exported model ({error}); export the model again"
        ) from error
    if form != FORMAT:
        raise DataError(
            f"{path} was not written by `attnbench export` (format {form!r}, expected {FORMAT!r}); for a "
            "folder of diffusers use `attnbench import`"
        )
    try:
        return ExportedConfig.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {where}: {first['msg']}; it is damaged or of a newer attnbench: export the model "
            "again, or update attnbench"
        ) from error


def is_exported(source: Path) -> bool:
    """Return whether a folder was written by `attnbench export`, `import` or `transfer`."""
    try:
        return read_config(source).format == FORMAT
    except DataError:
        return False
