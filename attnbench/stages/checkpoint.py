"""Checkpoints in safetensors: written whole or not at all, refused when cut short or foreign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attnbench.errors import CheckpointError
from attnbench.results import Record
from attnbench.stages.loss_curve import Progress
from attnbench.stages.store import atomic_path

FORMAT = "attnbench-1"


class ModelInput(Record):
    """What a trained model takes; lives in the metadata of its averaged weights."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Groups of named tensors (`model`, `ema`, `optimizer`) and the progress they belong to."""

    groups: Mapping[str, Mapping[str, torch.Tensor]]
    progress: Progress


def save_checkpoint(path: Path, checkpoint: Checkpoint, key: str) -> None:
    """Write a checkpoint of the case with train key `key`; raises StorageError, keeping the old file."""
    tensors = {
        f"{group}/{name}": tensor
        for group, named in checkpoint.groups.items()
        for name, tensor in named.items()
    }
    save_tensors(path, tensors, key, {"progress": checkpoint.progress.model_dump_json()})


def load_checkpoint(path: Path, key: str) -> Checkpoint:
    """Read a checkpoint; raises CheckpointError when it is cut short or of another training."""
    tensors, metadata = load_tensors(path, key)
    groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    try:
        progress = Progress.model_validate_json(metadata.get("progress", ""))
    except ValidationError as error:
        raise _unreadable(path, "its progress record is damaged") from error
    return Checkpoint(groups=groups, progress=progress)


def save_averaged(path: Path, weights: Mapping[str, torch.Tensor], model_input: ModelInput, key: str) -> None:
    """Write the averaged weights of a finished training; raises StorageError."""
    save_tensors(path, weights, key, {"input": model_input.model_dump_json()})


def load_averaged(path: Path, key: str) -> tuple[dict[str, torch.Tensor], ModelInput]:
    """Read averaged weights and what their model takes; raises CheckpointError."""
    weights, metadata = load_tensors(path, key)
    try:
        return weights, ModelInput.model_validate_json(metadata.get("input", ""))
    except ValidationError as error:
        raise _unreadable(path, "its record of the model's input is damaged") from error


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], key: str, metadata: Mapping[str, str]
) -> None:
    """Write named tensors and string metadata atomically, in safetensors; raises StorageError."""
    with atomic_path(path) as temporary:
        try:
            save_file(_unshared(tensors), temporary, {"format": FORMAT, "key": key, **metadata})
        except SafetensorError as error:  # its only failure here is the disk, told as text
            raise OSError(str(error)) from error


def load_tensors(path: Path, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read named tensors (on the CPU) and metadata; raises CheckpointError naming file and remedy."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; run the train stage again") from error
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this version of attnbench (format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}); move it away, then run again"
        )
    if metadata.get("key") != key:
        raise CheckpointError(
            f"{path} belongs to another training (key {metadata.get('key')}, expected {key}); "
            "move it away, then run again to train from the start"
        )
    return tensors, metadata


def load_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a module, name by name; raises CheckpointError listing what does not fit."""
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        mismatch = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} does not fit this model: {mismatch}; the code of a backend has changed since: "
            "move the file away, then run again"
        ) from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimizer's state as `<parameter index>/<name>` tensors; its settings are the case's."""
    state: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}/{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, torch.Tensor]) -> None:
    """Load what `flatten_optimizer` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring tensors to the CPU; those that share memory (tied weights) are copied for safetensors."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read ({why}): it is cut short or damaged; delete it, then run the same command "
        "again to train this cell from the start"
    )
