"""The log of a training: JSON lines that do not depend on the clock, event files, and plugins' loggers.

`train.jsonl` belongs to the checkpoint: after a kill it is cut to the checkpoint's step, so that in the end
it is that of an uninterrupted training. What the clock says lies apart, in `timing.jsonl`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from attnbench.errors import UserInputError
from attnbench.plugins import registry
from attnbench.results import AnyRecord, Record, checked_record, with_checksum
from attnbench.stages.training.loss_curve import Timing
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.names import TENSORBOARD, TIMING, TRAIN_LOG


class LogRecord(Record):
    """One line of train.jsonl; fields without a value are left out."""

    step: int
    """Optimizer steps done."""
    loss: float | None = None
    """Mean loss of the interval that ends here, auxiliary losses included."""
    grad_norm: float | None = None
    """Mean norm of the gradient over the interval, before clipping."""
    lr: float | None = None
    """Learning rate of the last step."""
    recorded: dict[str, dict[str, float | list[float]]] = Field(default_factory=dict)
    """What the attention recorded in the last step: `share` of each choice, or `mean` and `std`."""
    held_out_loss: list[float] = Field(default_factory=list)
    """Loss of the averaged weights on held-out images at equidistant times, from data to noise."""


class TrainingLog:
    """Writes the records of one training; `log_bytes` of the checkpoint says where it goes on."""

    def __init__(
        self, folder: Path, *, kinds: Sequence[str], label: str, step: int = 0, log_bytes: int = 0
    ) -> None:
        self.folder, self.label, self.kinds = folder, label, kinds
        self.notes: list[str] = []
        self._events = open_event_files(folder / TENSORBOARD, step) if "tensorboard" in kinds else None
        self._loggers_work = True
        self._cut_log(log_bytes)
        self.timings = [t for t in read_lines(folder / TIMING, Timing) if t.step <= step]
        atomic_write(folder / TIMING, b"".join(with_checksum(t) + b"\n" for t in self.timings))

    def write(self, record: LogRecord) -> None:
        """Append one record everywhere; raises StorageError."""
        if "jsonl" in self.kinds:
            _append(self.folder / TRAIN_LOG, record.model_dump_json(exclude_defaults=True))
        if self._events is not None:
            for name, value in scalars(record):
                self._events.add_scalar(name, value, record.step)
            self._events.flush()
        self._tell_plugins(record)

    def write_timing(self, timing: Timing) -> None:
        """Append what the clock says of some steps; raises StorageError."""
        self.timings.append(timing)
        _append(self.folder / TIMING, with_checksum(timing).decode())

    def sync(self) -> int:
        """Bring the log to the disk and return its length in bytes; a checkpoint may follow."""
        path = self.folder / TRAIN_LOG
        if not path.exists():
            return 0
        with storage_errors(path), path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close event files."""
        if self._events is not None:
            self._events.close()

    def _cut_log(self, length: int) -> None:
        path = self.folder / TRAIN_LOG
        with storage_errors(path):
            present = path.stat().st_size if path.exists() else 0
            if present > length:
                os.truncate(path, length)
        if present < length:
            self.notes.append(f"{TRAIN_LOG} lost its records before this point: somebody removed or cut it")

    def _tell_plugins(self, record: LogRecord) -> None:
        """Hand a record to plugins' loggers; one that raises is not asked again, and the results say so."""
        if not self._loggers_work:
            return
        values = record.model_dump(exclude_defaults=True)
        try:
            registry().hook.attnbench_training_log(label=self.label, folder=self.folder, record=values)
        except Exception as error:  # noqa: BLE001 - a logger must not end a training
            self._loggers_work = False
            self.notes.append(
                f"a plugin's attnbench_training_log raised {type(error).__name__}: {error} at step "
                f"{record.step}; plugins were told nothing after that"
            )


class RecordedStatistics:
    """A recorder that keeps sums: choices (integers, booleans) are counted, other numbers averaged.

    `images` is how many a micro-batch has: an integer of each is a number of the image, no router's choice.
    """

    def __init__(self, images: int | None = None) -> None:
        self._images = images
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._of_images: set[str] = set()

    def __call__(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor of any shape; micro-batches add up."""
        if tensor.dtype == torch.bool:  # [..., E]: which of E were chosen
            flat = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
            sums = [flat.sum(0), torch.tensor(len(flat))]
        elif not tensor.is_floating_point():  # [...]: the number of the chosen one
            sums = [torch.bincount(tensor.flatten()), torch.tensor(tensor.numel())]
            if tensor.shape == (self._images,):
                self._of_images.add(name)
        else:
            values = tensor.double()
            sums = [torch.tensor(tensor.numel()), values.sum(), values.square().sum()]
        self._add_up(name, [value.cpu() for value in sums])

    def merge(self, other: RecordedStatistics) -> None:
        """Add what another process recorded."""
        for name, sums in other._sums.items():
            self._add_up(name, sums)
        self._of_images |= other._of_images

    def _add_up(self, name: str, sums: list[torch.Tensor]) -> None:
        before = self._sums.get(name)
        self._sums[name] = sums if before is None else [_add(a, b) for a, b in zip(before, sums, strict=True)]

    def choices(self) -> dict[str, torch.Tensor]:
        """Return how often each option of every choice was taken, [options], by name."""
        counted = {name: sums[0] for name, sums in self._sums.items() if len(sums) == 2}
        return {name: counts for name, counts in counted.items() if name not in self._of_images}

    def summary(self) -> dict[str, dict[str, float | list[float]]]:
        """Return the shares, or mean and standard deviation, by name."""
        result: dict[str, dict[str, float | list[float]]] = {}
        for name, sums in self._sums.items():
            if len(sums) == 2:
                result[name] = {"share": (sums[0] / sums[1]).tolist()}
            else:
                count, total, squares = (float(value) for value in sums)
                mean = total / count
                result[name] = {"mean": mean, "std": math.sqrt(max(0.0, squares / count - mean**2))}
        return result


def scalars(record: LogRecord) -> list[tuple[str, float]]:
    """Return a record as flat (name, value) pairs, lists by position."""
    found: list[tuple[str, float]] = []
    for name in ("loss", "grad_norm", "lr"):
        value = getattr(record, name)
        if value is not None:
            found.append((name, value))
    found += [(f"held_out_loss/{i}", value) for i, value in enumerate(record.held_out_loss)]
    for name, statistics in record.recorded.items():
        for kind, values in statistics.items():
            several = values if isinstance(values, list) else [values]
            found += [(f"{name}/{kind}/{i}", value) for i, value in enumerate(several)]
    return found


def open_event_files(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer; raises UserInputError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserInputError(
            "train.log asks for tensorboard, but the package tensorboard is not installed; "
            "pip install tensorboard, or set train.log: [jsonl]"
        ) from error
    return SummaryWriter(log_dir=str(folder), purge_step=step + 1)


def read_lines(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """Read the whole lines of a file; one that was cut or damaged, and what follows it, is left out."""
    records: list[AnyRecord] = []
    if not path.exists():
        return records
    for line in path.read_bytes().splitlines():
        try:
            records.append(checked_record(line, kind))
        except ValueError:
            break
    return records


def _append(path: Path, line: str) -> None:
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add counts of which one may know more choices than the other."""
    if a.ndim and len(a) != len(b):
        longest = max(len(a), len(b))
        a, b = (torch.nn.functional.pad(t, (0, longest - len(t))) for t in (a, b))
    return a + b
