"""How fast a plan takes a machine to be: this one as it is measured, or one that `--assume` names."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from attnbench.devices import chosen_device
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.specs import Precision

MATMUL_EFFICIENCY = 0.6
"""A small matmul reaches about so much of the rate of a large one; of this machine, which is measured."""
PEAK_SHARE = 0.35
"""Of a vendor's peak, where `--assume` says nothing: published trainings reach 0.21 to 0.46 of it (model
FLOPs utilisation, arXiv:2204.02311, Table 3); small models reach less."""
_WRITTEN = re.compile(r"(?P<name>[a-z][a-z0-9]*?)(?:x(?P<count>[1-9][0-9]*))?(?:@(?P<share>[0-9.]+))?")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU: peak TFLOP/s of dense matrix products, and where that is printed."""

    bf16: float
    """Tensor cores that add in fp32, without sparsity."""
    fp32: float
    """Without TensorFloat-32, as torch multiplies where nobody allows it."""
    source: str


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(bf16=312.0, fp32=19.5, source="NVIDIA A100 Tensor Core GPU data sheet"),
    "h100": Gpu(bf16=989.4, fp32=66.9, source="NVIDIA H100 Tensor Core GPU Architecture, SXM5"),
    "h200": Gpu(bf16=989.4, fp32=66.9, source="NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "l40s": Gpu(bf16=362.0, fp32=91.6, source="NVIDIA L40S data sheet"),
    "rtx4090": Gpu(bf16=165.2, fp32=82.6, source="NVIDIA Ada GPU Architecture"),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan reckons with."""

    macs_per_s: Mapping[Precision, float]
    """Multiply-adds a second that the products of a model reach on one of its devices."""
    count: int = 1
    """Devices, among which cases are shared out."""
    said: str
    """In words, with the rates and where they come from."""
    is_here: bool = True


def assumed(text: str) -> Machine:
    """Return the machine that `--assume` names: a GPU, how many, and the share of its peak, `h100x4@0.3`.

    Raises UserInputError.
    """
    found = _WRITTEN.fullmatch(text.lower())
    if found is None:
        raise UserInputError(
            "--assume takes a GPU and how many, such as h100x4, or with a share of its peak, h100x4@0.3; "
            f"got {text!r}; GPUs: {', '.join(GPUS)}"
        )
    if found["name"] not in GPUS:
        raise UnknownNameError("GPU of --assume", found["name"], GPUS)
    share = _share(found["share"])
    gpu, count = GPUS[found["name"]], int(found["count"] or 1)
    return Machine(
        macs_per_s={"bf16": 0.5e12 * gpu.bf16 * share, "fp32": 0.5e12 * gpu.fp32 * share},
        count=count,
        said=f"{count} x {found['name']}, assumed: {100 * share:g} % of {gpu.bf16:g} TFLOP/s in bf16 and of "
        f"{gpu.fp32:g} in fp32 (dense; {gpu.source}), a multiply-add being 2 FLOP",
        is_here=False,
    )


def _share(text: str | None) -> float:
    try:
        share = PEAK_SHARE if text is None else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserInputError(
            f"--assume: the share of the peak is above 0 and at most 1, got {text}; e.g. h100x4@0.3"
        )
    return share


def this_machine(device: str | None = None) -> Machine:
    """Return this machine, its rate measured in a few milliseconds; raises as `devices.chosen_device`."""
    chosen = chosen_device(device)
    rate = MATMUL_EFFICIENCY * matmul_macs_per_s(chosen)
    return Machine(
        macs_per_s={"bf16": rate, "fp32": rate},
        said=f"this machine's {chosen}: {2e-9 * rate:,.0f} GFLOP/s, {100 * MATMUL_EFFICIENCY:g} % of a large "
        "fp32 matmul that was just measured",
    )


def matmul_macs_per_s(device: str, size: int = 768, rounds: int = 5) -> float:
    """Measure the fp32 matmul rate of a device in a few milliseconds, in multiply-adds a second."""
    import torch

    a = torch.randn(size, size, device=device)
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return size**3 / statistics.median(times[2:])
