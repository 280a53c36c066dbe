"""What autocast does at one place, and how to keep it out of maths that must not be rounded."""

from __future__ import annotations

import contextlib

import torch


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype a Linear layer would compute in on `x`: autocast's where it is on, else x's."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matmuls on x's device keep their inputs' dtype."""
    if x.device.type == "meta":  # torch has no autocast there
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
