"""Peak memory of a pass whose size is known."""

from __future__ import annotations

import platform
import subprocess
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
    assert filled.live_mib == mib
    assert idle.live_mib == 0
    # allocator pages and the interpreter's own growth: a few MiB either way
    assert filled.extra_mib == pytest.approx(mib, abs=8)
    assert idle.extra_mib < 8
    assert filled.peak_mib > idle.peak_mib + mib / 2


MEASURE = """
import torch
from attnbench.models.recipes import resolve
from attnbench.profiling.memory import peak_memory, prepare_for_memory
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload
torch.set_num_threads(1)
prepare_for_memory()
config = resolve("sana-s", {"depth": 1})
built = build_pass(Workload(config=config, input_size=32, num_classes=10, batch_size=4), torch.device("cpu"))
memory = peak_memory(built.run, torch.device("cpu"))
print(memory.extra_mib, memory.live_mib)
"""


@linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")
def test_a_prepared_process_grows_by_its_tensors():
    """Sana's Mix-FFN frees tensors of many sizes, which an allocator's heap would keep: 1.6 times as much.

    Each of the some 20 tensors alive at the peak is rounded up to pages (4 KiB) and the kernel's counter is
    exact to 64 pages a CPU: far below 1 MiB here.
    """
    answer = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    process_mib, live_mib = map(float, answer.stdout.split())
    assert live_mib > 20
    assert process_mib == pytest.approx(live_mib, abs=1)


def test_no_preparation_without_glibc(monkeypatch):
    """Elsewhere the heap cannot be told to let go: a reason, not a number that means something else."""
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    with pytest.raises(UnsupportedError, match="glibc"):
        memory.prepare_for_memory()


@linux
def test_the_first_pass_is_not_measured():
    """What a first pass makes and keeps, such as AdamW's averages, is none of the second's peak."""
    kept: list[torch.Tensor] = []

    def keep_once() -> None:
        if not kept:
            kept.append(torch.ones(96 * 2**20, dtype=torch.uint8))

    assert peak_memory(keep_once, CPU).extra_mib < 8


def test_unsupported_where_the_mark_cannot_be_reset(monkeypatch, tmp_path):
    """Without clear_refs there is a reason, not a number that means something else."""
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    with pytest.raises(UnsupportedError, match="clear_refs"):
        peak_memory(lambda: None, CPU)
