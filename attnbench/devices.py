"""Which device: the one there is, whether one is there, its name, one for each process; and the cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attnbench.errors import UserInputError

if TYPE_CHECKING:
    import torch


def default_device() -> str:
    """Return `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_device(asked: str | None) -> str:
    """Return what the user asked for, or the default for `auto` or nothing; raises as `check_device`."""
    device = default_device() if asked in (None, "auto") else asked
    assert device is not None
    check_device(device)
    return device


def check_device(device: str) -> None:
    """Raise UserInputError unless `device` is a CPU or CUDA device that is there."""
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise UserInputError(f"unknown device {device!r}; choose cpu, cuda or cuda:0") from error
    if asked.type not in ("cpu", "cuda"):
        raise UserInputError(f"attnbench runs on cpu and cuda, got {device!r}")
    if asked.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserInputError(f"device {device!r} asked for, but this torch sees no CUDA device; choose cpu")
    count = torch.cuda.device_count()
    if asked.index is not None and asked.index >= count:
        raise UserInputError(
            f"device {device!r} asked for, but this torch sees {count} CUDA devices; choose "
            f"{', '.join(f'cuda:{number}' for number in range(count))}"
        )


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_of_rank(device: torch.device, rank: int, size: int) -> torch.device:
    """Return the device of one of `size` processes: the CPU, or the GPU with its number."""
    import torch

    return torch.device("cuda", rank) if device.type == "cuda" and size > 1 else device


def available_cores() -> int:
    """Return how many cores this process may use; where the system does not say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
