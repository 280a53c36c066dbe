"""Named tensors out of other people's files, without running any code in them."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from attnbench.errors import DataError, cannot_read
from attnbench.storage.hub import WEIGHTS
from attnbench.storage.tensor_files import tensors_in

SAFETENSORS, PICKLED = WEIGHTS


def weights_path(home: Path) -> Path:
    """Return the weights file in a folder of diffusers; raises DataError when there is none, or parts."""
    for name in (SAFETENSORS, PICKLED):
        if (home / name).is_file():
            return home / name
    if list(home.glob("*.index.json")):
        raise DataError(
            f"the weights in {home} are in several parts; join them in diffusers with "
            "save_pretrained(folder, max_shard_size='100GB') first"
        )
    raise DataError(f"no weights in {home}: expected {SAFETENSORS} or {PICKLED}")


def read_weights(home: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a folder of diffusers; raises DataError."""
    path = weights_path(home)
    if path.name == PICKLED:
        return tensors_of(unpickle(path), path)
    try:
        return tensors_in(path)
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except SafetensorError as error:
        raise DataError(
            f"{path} cannot be read ({error}): it is cut short or damaged; fetch it again"
        ) from error


def unpickle(path: Path) -> Any:
    """Read a file of torch.save that holds tensors, containers and training arguments only.

    Raises DataError; anything that would run code is refused.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except Exception as error:  # damaged bytes raise what they like while they are unpickled
        # torch's own words advise to run the code that a file may hold
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors" if refused else " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as weights ({reason}): it is damaged, or no file of weights"
        ) from error


def tensors_of(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return `content` if it is a mapping of names to tensors; raises DataError."""
    if isinstance(content, dict) and content and all(isinstance(v, torch.Tensor) for v in content.values()):
        return dict(content)
    raise DataError(f"{path} holds no mapping of names to tensors, but a {type(content).__name__}")
