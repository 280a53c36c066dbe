"""Energy, clocks and finding the device, against a stand-in for NVML and a scripted clock."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from attnbench.errors import UnsupportedError
from attnbench.profiling.nvml import Clocks, NvmlMeter, measure_energy

IDLE_W, BUSY_W = 70.0, 400.0
GPU = torch.device("cuda:0")


class Board:
    """A GPU of one power when idle, one when busy, whose counter moves every `step_s`."""

    def __init__(self, step_s: float, pass_s: float) -> None:
        self.step_s, self.pass_s, self.now_s, self.energy_j = step_s, pass_s, 1.0, 1e4
        self.shown_j, self.shown_at = self.energy_j, 1.0

    def spend(self, seconds: float, watts: float) -> None:
        end = self.now_s + seconds
        while (tick := (math.floor(self.now_s / self.step_s + 1e-9) + 1) * self.step_s) <= end:
            self.energy_j += watts * (tick - self.now_s)
            self.now_s = tick
            self.shown_j = self.energy_j
        self.energy_j += watts * (end - self.now_s)
        self.now_s = end

    def energy_mj(self) -> int:
        return int(1e3 * self.shown_j)

    def measure(self, images: int = 4):
        return measure_energy(
            lambda: self.spend(self.pass_s, BUSY_W),
            images,
            self,
            synchronize=lambda: None,
            now=lambda: self.now_s,
            sleep=lambda seconds: self.spend(seconds, IDLE_W),
        )


@pytest.mark.parametrize("step_s", [0.02, 0.1])
@pytest.mark.parametrize("pass_s", [0.0007, 0.03, 0.17])
def test_energy_per_image(step_s, pass_s):
    """Whatever the counter's step and the pass's length, energy is right to the resolution that is stated."""
    found = Board(step_s, pass_s).measure()
    assert found.resolution <= 0.05
    assert found.seconds >= 1.0
    assert found.energy_j == pytest.approx(BUSY_W * pass_s / 4, rel=found.resolution + 1e-4)  # 1e-4: whole mJ
    assert found.power_w == pytest.approx(BUSY_W, rel=found.resolution + 1e-4)
    assert found.idle_w == pytest.approx(IDLE_W, rel=0.05)


def test_a_counter_that_stands_still(monkeypatch):
    """Where the counter does not move there is a reason, neither a zero nor a wait without end."""
    board = Board(0.1, 0.03)
    monkeypatch.setattr(board, "energy_mj", lambda: 5)
    with pytest.raises(UnsupportedError, match="did not move"):
        board.measure()


def test_what_held_the_clock():
    """Reasons are counted over readings; an idle GPU's is none."""
    readings = iter([(1980, 0x1), (1700, 0x4), (1750, 0x4 | 0x20)])
    now = {}

    def clock_mhz():
        now["mhz"], now["bits"] = next(readings)
        return now["mhz"]

    clocks = Clocks(types.SimpleNamespace(clock_mhz=clock_mhz, reasons=lambda: now["bits"]))
    assert (clocks.clock_mhz, clocks.throttled) == (None, "")
    clocks.read()
    assert (clocks.clock_mhz, clocks.throttled) == (1980, "")
    clocks.read()
    clocks.read()
    assert (clocks.clock_mhz, clocks.throttled) == (1750, "power cap in 2 of 3, thermal slowdown in 1 of 3")


def test_no_clock_fails_no_row(monkeypatch):
    """Without the package, or with one that refuses, timing goes on and the reason is kept."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="x"))
    clocks = Clocks.of(GPU)
    clocks.read()
    assert (clocks.clock_mhz, clocks.throttled) == (None, "")
    assert "pynvml" in clocks.reason

    def refuse() -> int:
        raise UnsupportedError("NVML's nvmlDeviceGetClockInfo: Not Supported")

    refusing = Clocks(types.SimpleNamespace(clock_mhz=refuse, reasons=lambda: 0))
    refusing.read()
    refusing.read()
    assert (refusing.mhz, refusing.reason) == ([], "NVML's nvmlDeviceGetClockInfo: Not Supported")


class Nvml(types.ModuleType):
    """Two GPUs, in NVML's order, and a slice of one."""

    NVML_CLOCK_SM = 1
    known = ("GPU-aaaa-0", "GPU-bbbb-1", "MIG-cccc-2")

    class NVMLError(Exception): ...

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's name

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.known:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle.startswith("MIG"):
            raise self.NVMLError("Not Supported")
        return 1000 * self.known.index(handle)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return 1980


@pytest.fixture
def machine(monkeypatch):
    """CUDA_VISIBLE_DEVICES=1,0: torch's cuda:0 is NVML's second."""
    uuids = ["bbbb-1", "aaaa-0", "cccc-2", "dddd-3"]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: types.SimpleNamespace(uuid=uuids[d.index])
    )
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("pynvml"))


def test_device_is_found_whatever_its_number(machine):
    """Torch's first device is the one whose counter is read."""
    assert NvmlMeter(GPU).energy_mj() == 1000
    assert NvmlMeter(torch.device("cuda:1")).energy_mj() == 0


def test_what_nvml_refuses_is_a_reason(machine):
    """A slice has a clock but no energy; an unknown device and an old package are said, too."""
    part = NvmlMeter(torch.device("cuda:2"))
    assert part.clock_mhz() == 1980
    with pytest.raises(UnsupportedError, match="nvmlDeviceGetTotalEnergyConsumption: Not Supported"):
        part.energy_mj()
    with pytest.raises(UnsupportedError, match="Not Found"):
        NvmlMeter(torch.device("cuda:3"))
    with pytest.raises(UnsupportedError, match="nvmlDeviceGetCurrentClocksEventReasons"):
        part.reasons()


def test_without_the_package_the_reason_names_it(monkeypatch):
    """The extra that installs it is in the words."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnsupportedError, match=r"attnbench\[gpu\]"):
        NvmlMeter(GPU)
