"""The exported folder: model.safetensors, config.json and README.md, written whole and read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from attnbench.errors import DataError
from attnbench.exchange.card import model_card
from attnbench.exchange.folders import new_folder, read_bytes, writing
from attnbench.results import Record, environment
from attnbench.specs import ModelConfig
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.initial_weights import CONFIG, EXPORT_FORMAT, WEIGHTS
from attnbench.storage.hashing import file_sha256

FORMAT: Literal["attnbench-export-1"] = EXPORT_FORMAT
CARD = "README.md"


class BackendOrigin(Record):
    """Who provided an attention when the model was trained."""

    provider: str
    """`built-in`, or the distribution and its version."""
    code: str
    """Fingerprint of the source file that builds it."""


class CodecInfo(Record):
    """The autoencoder whose latents a model was trained on: x = scale (z - shift)."""

    kind: Literal["autoencoder-kl", "autoencoder-tiny"]
    scale: float
    shift: float
    fingerprint: str
    hub: str = ""
    """Repository on the Hugging Face hub, folder in it and commit, where it is from there."""


class TransferOrigin(Record):
    """Where the copied part of a model's weights comes from; the rest is as initialised."""

    weights_sha256: str
    recipe: str
    attention: list[str]
    copied: int
    left: int
    missing: int


class ExportedConfig(Record):
    """Everything a stranger needs to use the weights beside them: the content of config.json."""

    format: Literal["attnbench-export-1"] = FORMAT
    attnbench: str = Field(default_factory=lambda: environment().packages.get("attnbench", "(not installed)"))
    """Version that wrote this."""
    model: ModelConfig
    input: ModelInput
    """(C, H, W) of the model's input, and the number of classes; class `num_classes` is the null class."""
    class_names: list[str] | None = None
    objective: Literal["ddpm", "flow"]
    codec: CodecInfo | None = None
    backends: dict[str, BackendOrigin]
    seed: int | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """The training settings; empty for weights that were not trained here."""
    data: str = ""
    suite: str = ""
    label: str = ""
    imported_from: str = ""
    transferred_from: TransferOrigin | None = None
    weights_sha256: str = ""

    @property
    def attention(self) -> list[str]:
        """Names of the attention backends, in alphabetical order."""
        return sorted(self.model.attention_names())


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
