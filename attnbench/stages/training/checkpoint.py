"""Checkpoints in safetensors: written whole or not at all, checked on load, with the one before kept."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from attnbench.errors import CheckpointError, cannot_read
from attnbench.results import Record
from attnbench.stages.training.loss_curve import TrainingProgress
from attnbench.stages.training.sharding import cut_like
from attnbench.storage.atomic import atomic_path, storage_errors
from attnbench.storage.names import CHECKPOINT, DONE, PREVIOUS_CHECKPOINT
from attnbench.storage.tensor_files import open_tensors, write_tensors

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT = "attnbench-2"  # 1: without checksum
ENTRY = "attnbench"  # of a file's metadata
GO_BACK = (
    "move it away, then run the same command again to go on from the checkpoint before it, if there is one, "
    "or from the start"
)


class ModelInput(Record):
    """What a trained model takes; lives in the metadata of its averaged weights."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Groups of named tensors (`model`, `ema`, `optimizer`) and the progress they belong to.

    Further averages are groups, too: `ema-DECAY`.
    """

    groups: Mapping[str, Mapping[str, torch.Tensor]]
    progress: TrainingProgress


def previous_path(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name(PREVIOUS_CHECKPOINT)


def save_checkpoint(path: Path, checkpoint: Checkpoint, key: str) -> None:
    """Write a checkpoint of the case with train key `key`; the one before moves to `previous_path`.

    Raises StorageError, keeping both old files. Killed at any moment, it leaves at least one whole file.
    """
    tensors = {
        f"{group}/{name}": tensor
        for group, named in checkpoint.groups.items()
        for name, tensor in named.items()
    }
    metadata = {"progress": checkpoint.progress.model_dump_json()}
    save_tensors(path, tensors, key, metadata, keep=previous_path(path))


def load_checkpoint(path: Path, key: str) -> Checkpoint:
    """Read a checkpoint; raises CheckpointError when it is damaged or of another training."""
    tensors, metadata = load_tensors(path, key)
    groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    try:
        progress = TrainingProgress.model_validate_json(metadata.get("progress", ""))
    except ValidationError as error:
        raise _unreadable(path, "its progress record is damaged", GO_BACK) from error
    return Checkpoint(groups=groups, progress=progress)


def load_newest(path: Path, key: str) -> tuple[Checkpoint, str] | None:
    """Read the newest checkpoint that is whole, and what a reader must be told (or an empty string).

    None where there is none yet. Raises CheckpointError when none of those there are can be used.
    """
    older = previous_path(path)
    if not path.exists():  # also: killed between moving the old file away and the new one in
        if not older.exists():
            return None
        checkpoint = load_checkpoint(older, key)
        return checkpoint, _went_back(path, checkpoint) if _damaged_path(path).exists() else ""
    try:
        return load_checkpoint(path, key), ""
    except CheckpointError as error:
        if not older.exists():
            raise
        try:
            checkpoint = load_checkpoint(older, key)
        except CheckpointError:
            raise error from None
        return checkpoint, _went_back(path, checkpoint)


def set_aside(path: Path) -> None:
    """Move a checkpoint that cannot be used out of the way; raises StorageError.

    The next one to be saved would push it into the place of the whole one before it.
    """
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        path.replace(_damaged_path(path))


def _damaged_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.damaged{path.suffix}")


def _went_back(path: Path, checkpoint: Checkpoint) -> str:
    return (
        f"{path.name} could not be used; training went on from the checkpoint before it, "
        f"step {checkpoint.progress.step}"
    )


def save_averaged(path: Path, weights: Mapping[str, torch.Tensor], model_input: ModelInput, key: str) -> None:
    """Write the averaged weights of a finished training; raises StorageError."""
    save_tensors(path, weights, key, {"input": model_input.model_dump_json()})


def load_averaged(path: Path, key: str) -> tuple[dict[str, torch.Tensor], ModelInput]:
    """Read averaged weights and what their model takes; raises CheckpointError."""
    # the training counts as finished: without its mark it goes on from the checkpoint of its last step
    remedy = (
        f"move it and {path.with_name(DONE)} away, then run the suite again: no step is made again, it is "
        f"written anew from {CHECKPOINT}"
    )
    weights, metadata = load_tensors(path, key, remedy)
    try:
        return weights, ModelInput.model_validate_json(metadata.get("input", ""))
    except ValidationError as error:
        raise _unreadable(path, "its record of the model's input is damaged", remedy) from error


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    key: str,
    metadata: Mapping[str, str],
    keep: Path | None = None,
) -> None:
    """Write named tensors and string metadata atomically, in safetensors, with a checksum over both.

    What was at `path` before moves to `keep`, if given. Raises StorageError.
    """
    tensors = _unshared(tensors)
    written = {"format": FORMAT, "key": key, **metadata}
    written["crc32"] = checksum(tensors, written)
    with atomic_path(path) as temporary:
        # one entry: safetensors writes several in a random order, and equal content is to be equal bytes
        write_tensors(temporary, tensors, {ENTRY: json.dumps(written, sort_keys=True)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before the old file moves: afterwards nothing can fail but a rename
        if keep is not None and path.exists():
            path.replace(keep)


def load_tensors(
    path: Path, key: str, remedy: str = GO_BACK
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read named tensors (on the CPU) and metadata; raises CheckpointError naming file and remedy."""
    try:
        with open_tensors(path) as file:
            metadata = _metadata(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise CheckpointError(cannot_read(path, error, remedy)) from error
    except SafetensorError as error:
        raise _unreadable(path, str(error), remedy) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this version of attnbench (format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}); {remedy}"
        )
    written = metadata.pop("crc32", "")
    if written != checksum(tensors, metadata):
        raise _unreadable(path, "its checksum is not that of its content", remedy)
    if metadata.get("key") != key:
        raise CheckpointError(
            f"{path} belongs to another training (key {metadata.get('key')}, expected {key}); {remedy}"
        )
    return tensors, metadata


def _metadata(written: Mapping[str, str] | None) -> dict[str, str]:
    """Return what `save_tensors` was given, or nothing where a file is not of ours."""
    try:
        found = json.loads((written or {}).get(ENTRY, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32 over metadata, names, types, shapes and bytes, as 8 hex digits; CPU tensors."""
    value = 0
    for name, text in sorted(metadata.items()):
        value = zlib.crc32(f"{name}={text}\n".encode(), value)
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), value)
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(cast("Buffer", flat.numpy()), value)
    return f"{value:08x}"


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
    """Load what `flatten_optimizer` returned, put together; moments are cut as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        index, _, entry = name.partition("/")
        parameter = parameters[int(index)]
        is_moment = tensor.shape == parameter.shape
        state.setdefault(int(index), {})[entry] = cut_like(tensor, parameter) if is_moment else tensor
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


def _unreadable(path: Path, why: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({why}): it is cut short or damaged; {remedy}")
