"""Named tensors out of other people's files, without running any code in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from attnbench.errors import DataError, cannot_read
from attnbench.storage.hub import WEIGHTS
from attnbench.storage.tensor_files import tensors_in

SAFETENSORS, PICKLED = WEIGHTS
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DDP, torch.compile, FSDP and activation checkpointing put into the names of tensors."""
AVERAGES = ("ema", "ema_state_dict", "model_ema", "ema_model")
LIVE = ("model", "state_dict", "model_state_dict")
"""Entries of a training checkpoint that hold weights, in the order in which they are looked for."""


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
    return weights_in(unpickle(path), path)[0] if path.name == PICKLED else read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file under the model's own names; raises DataError."""
    try:
        return _unwrapped(tensors_in(path), path)
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
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's version, in a file not of torch's
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


def weights_in(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return the named tensors of an unpickled checkpoint, and the entry they were in; "" for a bare mapping.

    An average is taken before live weights. Names are those without `WRAPPERS`. Raises DataError.
    """
    if _are_tensors(content):
        return _unwrapped(content, path), ""
    entries = content if isinstance(content, dict) else {}
    for entry in (*AVERAGES, *LIVE):
        if _are_tensors(entries.get(entry)):
            return _unwrapped(entries[entry], path), entry
    held = f"a mapping with {', '.join(map(str, list(entries)[:6]))}" if entries else type(content).__name__
    raise DataError(
        f"{path} holds {held}, and no mapping of names to tensors, bare or as one of "
        f"{', '.join((*AVERAGES, *LIVE))}; save the model's state_dict() alone"
    )


def _are_tensors(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def _unwrapped(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors under the names they have in the model itself; raises DataError where two meet."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        bare = ".".join(part for part in str(name).split(".") if part not in WRAPPERS)
        if bare in plain:
            raise DataError(
                f"{path} holds {bare} twice, with and without a wrapper's prefix ({', '.join(WRAPPERS)}); "
                "save the state_dict() of one model"
            )
        plain[bare] = tensor
    return plain
