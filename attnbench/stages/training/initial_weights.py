"""Weights that a training starts from: a folder which `attnbench export`, `import` or `transfer` has written.

Imports no torch until weights are read: suites look at the folder's config when they are checked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from attnbench.errors import DataError, UserInputError, cannot_read
from attnbench.specs import ModelConfig

if TYPE_CHECKING:
    import torch

EXPORT_FORMAT: Literal["attnbench-export-1"] = "attnbench-export-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TRAINING_ONLY = ("class_dropout",)  # changes no weight


def initial_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the weights as the folder's config states it: part of a training's key.

    Raises DataError where the folder is no exported model.
    """
    return str(_config(folder)["weights_sha256"])


def initial_weights(folder: Path, model: ModelConfig) -> dict[str, torch.Tensor]:
    """Return the weights of an exported folder for a model, by name, on the CPU.

    Raises DataError for a damaged folder, UserInputError where its model is another.
    """
    from safetensors.torch import load

    from attnbench.models.options import with_all_options
    from attnbench.plugins import registry

    config = _config(folder)
    try:
        written = ModelConfig.model_validate_json(json.dumps(config["model"]))
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise DataError(
            f"train.init_from: {cannot_read(folder / WEIGHTS, error, 'export it again')}"
        ) from error
    except (KeyError, ValidationError) as error:
        raise DataError(f"{folder} is no whole exported model ({error}); export it again") from error
    if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
        raise DataError(f"{folder / WEIGHTS} is not the file that {CONFIG} describes; export the model again")
    # options left at their defaults may or may not be written
    theirs, ours = (with_all_options(each, registry()).content() for each in (written, model))
    other = [name for name in ours if ours[name] != theirs.get(name) and name not in TRAINING_ONLY]
    if other:
        told = ", ".join(f"{name} {theirs.get(name)!r} (here {ours[name]!r})" for name in other)
        raise UserInputError(
            f"train.init_from: {folder} holds a model with {told}; choose that model, or make a folder for "
            "this one with `attnbench transfer`"
        )
    return load(content)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if config["format"] == EXPORT_FORMAT and config["weights_sha256"]:
            return dict(config)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    except OSError as error:
        raise DataError(f"train.init_from: {cannot_read(folder / CONFIG, error)}") from error
    raise DataError(
        f"train.init_from: {folder} is no folder of `attnbench export`, `import` or `transfer` "
        f"(their {CONFIG}); make one of other weights with `attnbench import`"
    )
