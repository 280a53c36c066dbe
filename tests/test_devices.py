"""Which device and how many cores, also where a system says less than Linux does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from command_line import ROOT

from attnbench.devices import available_cores, check_device, chosen_device, default_device, device_of_rank
from attnbench.errors import UserInputError


def test_the_cores_of_a_system_without_affinity(monkeypatch):
    """macOS has no `sched_getaffinity`: all cores count, instead of an AttributeError or 1."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6


def test_no_module_asks_for_affinity_unguarded():
    """The one place that asks is `available_cores`."""
    asking = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "attnbench").rglob("*.py")
        if "sched_getaffinity" in path.read_text()
    ]
    assert asking == ["attnbench/devices.py"]


def test_windows_is_refused_in_one_sentence():
    """Locks and process groups are POSIX's: say so at import, instead of failing somewhere inside."""
    code = "import sys; sys.platform = 'win32'; import attnbench"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: attnbench runs on Linux and macOS; on Windows run it inside WSL2"


def test_devices_that_are_not_there(monkeypatch):
    """Every wrong device is one sentence that says what to choose."""
    with pytest.raises(UserInputError, match="unknown device 'gpu'"):
        check_device("gpu")
    with pytest.raises(UserInputError, match="runs on cpu and cuda, got 'mps'"):
        check_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserInputError, match="sees no CUDA device; choose cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(UserInputError, match="sees 2 CUDA devices; choose cuda:0, cuda:1"):
        check_device("cuda:2")


@pytest.mark.parametrize(("there", "chosen"), [(False, "cpu"), (True, "cuda")])
def test_auto_is_what_is_there(monkeypatch, there, chosen):
    """`auto` and nothing mean the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert default_device() == chosen_device("auto") == chosen_device(None) == chosen


def test_each_process_has_a_gpu_of_its_own():
    """Several processes: one GPU each; on the CPU, and alone, the device as it is."""
    assert device_of_rank(torch.device("cuda"), 2, 4) == torch.device("cuda", 2)
    assert device_of_rank(torch.device("cuda", 1), 0, 1) == torch.device("cuda", 1)
    assert device_of_rank(torch.device("cpu"), 2, 4) == torch.device("cpu")
