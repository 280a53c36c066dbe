"""Files of safetensors, whose library tells a full disk as text and every file it cannot open as missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors; raises OSError with its number, as every other way to write a file does."""
    with os_errors(path):
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a file of safetensors; raises OSError as `Path.open`, SafetensorError where it is damaged."""
    with path.open("rb"), safe_open(path, framework="pt") as file:
        yield file


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file, on the CPU; raises as `open_tensors` does."""
    with path.open("rb"):
        return load_file(path)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn what safetensors says of the disk while it writes at or below `path` into the OSError it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
