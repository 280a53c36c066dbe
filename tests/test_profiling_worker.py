"""The child's parts that need no process of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnbench.errors import NonFiniteError, UnsupportedError
from attnbench.profiling.passes import _fill_zero_parameters
from attnbench.profiling.worker import refusal


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), "skipped", "out of memory: MemoryError"),
        (RuntimeError("[enforce fail] not enough memory: you tried"), "skipped", "out of memory: [enforce"),
        (torch.OutOfMemoryError("CUDA out of memory."), "skipped", "out of memory: CUDA"),
        (UnsupportedError("xformers needs CUDA"), "skipped", "xformers needs CUDA"),
        (NonFiniteError("NaN in blocks.1"), "failed", "NaN in blocks.1"),
        (ValueError("wrong\nmore"), "failed", "ValueError: wrong"),
    ],
)
def test_status_and_reason(error, status, reason):
    """What this machine cannot do is skipped, what is broken has failed; both say why in one line."""
    reply = refusal(error)
    assert reply.status == status
    assert reply.reason.startswith(reason)
    assert "\n" not in reply.reason


def test_zero_parameters_are_filled():
    """Zero-initialised layers get small random values, others keep theirs."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    kept = model[0].weight.detach().clone()
    _fill_zero_parameters(model)
    assert model[1].weight.any()
    assert torch.equal(model[0].weight, kept)
