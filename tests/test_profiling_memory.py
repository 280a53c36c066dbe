"""Peak memory of a pass whose size is known."""

from __future__ import annotations

import sys

import pytest
import torch

from attnbench.errors import UnsupportedError
from attnbench.profiling import memory
from attnbench.profiling.memory import peak_memory

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs")


@linux
def test_peak_is_what_the_pass_held():
    """A pass that fills 96 MiB and frees them has that as its extra memory; the next starts anew."""
    mib = 96

    def fill() -> None:
        torch.ones(mib * 2**20, dtype=torch.uint8)

    filled, idle = peak_memory(fill, CPU), peak_memory(lambda: None, CPU)
    # allocator pages and the interpreter's own growth: a few MiB either way
    assert filled.extra_mib == pytest.approx(mib, abs=8)
    assert idle.extra_mib < 8
    assert filled.peak_mib > idle.peak_mib + mib / 2


def test_unsupported_where_the_mark_cannot_be_reset(monkeypatch, tmp_path):
    """Without clear_refs there is a reason, not a number that means something else."""
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    with pytest.raises(UnsupportedError, match="clear_refs"):
        peak_memory(lambda: None, CPU)
