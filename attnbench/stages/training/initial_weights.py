"""Weights that a training starts from: a folder which `attnbench export`, `import` or `transfer` has written.

Imports no torch until weights are read: suites look at the folder's config when they are checked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnbench.errors import DataError, UserInputError, cannot_read
from attnbench.models.resolution import LATENT_FACTOR
from attnbench.specs import GrowthSpec, ModelConfig
from attnbench.stages.training.block_origins import why_not_grown

if TYPE_CHECKING:
    import torch

EXPORT_FORMAT: Literal["attnbench-export-1"] = "attnbench-export-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TRAINING_ONLY = ("class_dropout",)  # changes no weight


def initial_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the weights as the folder's config states it: part of a training's key.

    Raises DataError where the folder is no exported model.
    """
    return str(exported_config(folder)["weights_sha256"])


def model_of(folder: Path) -> ModelConfig:
    """Return the model in an exported folder; raises DataError where the folder is none, or is damaged."""
    try:
        return ModelConfig.model_validate_json(json.dumps(exported_config(folder)["model"]))
    except (KeyError, ValueError) as error:
        raise _no_whole_model(folder, error) from error


def _no_whole_model(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder} is no whole exported model ({error}); export it again")


def why_not_from(
    folder: Path,
    model: ModelConfig,
    *,
    side: int | None = None,
    num_classes: int | None = None,
    growth: GrowthSpec | None = None,
) -> str | None:
    """Return why an exported folder's weights cannot start a model, and the way out; None where they can.

    `side` of the model's input and `num_classes` are compared where they are known; with `growth` the model
    is deeper than the folder's. Reads no weights. Raises DataError for a damaged folder.
    """
    from attnbench.models.options import with_all_options
    from attnbench.plugins import registry

    config, written = exported_config(folder), model_of(folder)
    try:
        their_side, their_classes = int(config["input"]["shape"][1]), int(config["input"]["num_classes"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _no_whole_model(folder, error) from error
    # options left at their defaults may or may not be written
    full, wanted = (with_all_options(each, registry()) for each in (written, model))
    grows: tuple[str, ...] = ()
    if growth is not None:
        reason = why_not_grown(full, wanted, growth)
        if reason is not None:
            return f"{folder}: {reason}"
        grows = ("depth", "attention")  # compared block by block
    theirs, ours = full.content(), wanted.content()
    other = [n for n in ours if ours[n] != theirs.get(n) and n not in (*TRAINING_ONLY, *grows)]
    if other:
        told = ", ".join(f"{name} {theirs.get(name)!r} (here {ours[name]!r})" for name in other)
        deeper = other == ["depth"] and written.depth < model.depth
        return (
            f"{folder} holds a model with {told}; choose that model, or make a folder for this one with "
            f"`attnbench transfer`{', or let it grow with train.growth' if deeper else ''}"
        )
    told_sizes, options = [], []
    if num_classes not in (None, their_classes):
        told_sizes.append(f"{their_classes} classes (here {num_classes})")
        options.append(f"--classes {num_classes}")
    if side is not None and side != their_side:
        pixels = LATENT_FACTOR if model.input == "latent" else 1
        told_sizes.append(f"images of {pixels * their_side} px (here {pixels * side} px)")
        options.append(f"--image-size {pixels * side}")
    if not told_sizes:
        return None
    return (
        f"{folder} holds a model of {' and '.join(told_sizes)}; make a folder for these with "
        f"`attnbench transfer {folder} {' '.join(options)} --to NEW` and name that"
    )


def initial_weights(
    folder: Path,
    model: ModelConfig,
    *,
    side: int | None = None,
    num_classes: int | None = None,
    growth: GrowthSpec | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weights of an exported folder that can start a model, by their names there, on the CPU.

    Raises DataError for a damaged folder, UserInputError where its model is another.
    """
    reason = why_not_from(folder, model, side=side, num_classes=num_classes, growth=growth)
    if reason is not None:
        raise UserInputError(f"train.init_from: {reason}")
    return exported_weights(folder)


def exported_weights(folder: Path, setting: str = "train.init_from") -> dict[str, torch.Tensor]:
    """Return the weights of an exported folder by name, on the CPU; raises DataError for a damaged one.

    `setting` is what names the folder in a suite.
    """
    from safetensors.torch import load

    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise DataError(f"{setting}: {cannot_read(folder / WEIGHTS, error, 'export it again')}") from error
    if hashlib.sha256(content).hexdigest() != exported_config(folder, setting)["weights_sha256"]:
        raise DataError(f"{folder / WEIGHTS} is not the file that {CONFIG} describes; export the model again")
    return load(content)


def exported_config(folder: Path, setting: str = "train.init_from") -> dict[str, Any]:
    """Return what the config.json of an exported folder says; raises DataError where it is none of ours."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if config["format"] == EXPORT_FORMAT and config["weights_sha256"]:
            return dict(config)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    except OSError as error:
        raise DataError(f"{setting}: {cannot_read(folder / CONFIG, error)}") from error
    raise DataError(
        f"{setting}: {folder} is no folder of `attnbench export`, `import` or `transfer` "
        f"(their {CONFIG}); make one of other weights with `attnbench import`"
    )
