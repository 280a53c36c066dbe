"""Planned memory: by hand, against torch's allocator, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from attnbench.errors import UnsupportedError, UserInputError
from attnbench.models.recipes import resolve
from attnbench.profiling.cuda_rules import CudaRules
from attnbench.profiling.fake_pass import fake_tensors
from attnbench.profiling.kernel_memory import Machine
from attnbench.profiling.live_tensors import LiveTensors
from attnbench.profiling.memory_plan import largest_batch, plan_memory
from attnbench.profiling.memory_size import parse_memory
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload

CPU = torch.device("cpu")
MIB = 2**20


def tiny(attention: str = "softmax", options: dict | None = None, **settings: object) -> Workload:
    config = resolve("tiny-dit", {"attention": {"name": attention, "options": options or {}}, "depth": 2})
    shared = {"config": config, "input_size": 8, "num_classes": 10, "batch_size": 2}
    return Workload.model_validate(shared | settings)


def allocator_peak(run) -> int:
    """Bytes that torch's allocator had handed out at most during the second pass."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    live = peak = 0
    for _, num_bytes in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += num_bytes
        peak = max(peak, live)
    return peak


def two_layers() -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Sequential(nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False))
    return layers, torch.randn(4, 32)


@pytest.mark.parametrize("fake", [True, False])
def test_two_layers_by_hand(fake):
    """fp32, x [4, 32]: weights 2 x 32 x 128, hidden h and r = ReLU(h) [4, 128], y [4, 32].

    Without gradients h is let go when r is there: the peak is max(h + r, r + y) = 4,096 bytes.
    With them: forward keeps r (for ReLU and the second layer; h is let go), and y. Backward from dy [4, 32]:
    dW2 (16,384) and dr (2,048) from it, then dh (2,048) and dW1 (16,384) while r, y and dy stay:
    r may go once dh is made, h's buffer is gone, so the peak is dW2 + dh + dW1 + y + dy at the end.
    """
    tensors = LiveTensors(Machine(device="cpu"))
    with fake_tensors() if fake else torch.enable_grad(), tensors:
        layers, x = two_layers()
        assert tensors.live == 4 * (2 * 32 * 128 + 4 * 32)
        before = tensors.live
        tensors.start_anew()
        with torch.no_grad():
            layers(x)
        assert tensors.live == before
        assert tensors.peak - before == 4 * (4 * 128 + 4 * 128)

        y = layers(x)
        assert tensors.live - before == 4 * (4 * 128 + 4 * 32)
        dy = torch.empty_like(y)
        tensors.start_anew()
        y.backward(dy)
        assert tensors.live - before == 4 * (2 * 4 * 32 + 2 * 32 * 128)
        assert tensors.peak - before == 4 * (2 * 4 * 32 + 2 * 32 * 128 + 4 * 128)


PASSES = [
    ("softmax", "forward"),
    ("softmax", "train"),
    ("softmax", "sample"),
    ("linear", "train"),
    ("dydila", "forward"),  # a custom operation around grouped_mm
    ("dydila", "train"),
    ("mediators", "train"),  # its way depends on the timesteps
    ("differential", "forward"),  # attention that no fused kernel takes
]


@pytest.mark.parametrize(("attention", "mode"), PASSES)
def test_plan_is_what_the_allocator_hands_out(attention, mode):
    """Every tensor of these passes is followed, and every buffer of their kernels known.

    The peak of a training may fall into the patch embedding's backward pass, where oneDNN copies the image
    [4, 1, 8, 8] and its weights [96, 1, 2, 2] up to twice, or, so few channels being too few, not at all.
    """
    options = {"schedule": [(500, 16), (1000, 4)]} if attention == "mediators" else {}
    work = tiny(attention, options, batch_size=4, mode=mode)
    planned = plan_memory(work).activations_mib * MIB
    copies = 4 * (4 * 8 * 8 + 2 * 96 * 2 * 2)
    assert planned == pytest.approx(allocator_peak(build_pass(work, CPU).run), abs=copies)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_plan_of_a_part(scope):
    """Only the part's weights stay, though a whole model is built to take it from."""
    work = tiny(scope=scope, mode="train")
    plan = plan_memory(work)
    built = build_pass(work, CPU)
    weights = sum(p.numel() * 4 for p in built.module.parameters())
    assert plan.weights_mib * MIB == weights
    assert plan.inputs_mib * MIB > 2 * weights  # AdamW's two averages
    assert plan.activations_mib * MIB == pytest.approx(allocator_peak(built.run), rel=0.01)


def test_plan_of_2048_px_takes_no_memory():
    """A training step of DiT-S at 2048 px holds 690 MiB and is planned in a tenth of that."""
    work = Workload(config=resolve("dit-s", {"depth": 1}), input_size=256, num_classes=10, mode="train")
    plan_memory(work.model_copy(update={"input_size": 32}))  # imports and caches
    before = resident_mib()
    plan = plan_memory(work)
    assert plan.planned_peak_mib > 600
    assert resident_mib() - before < 0.1 * plan.planned_peak_mib


def resident_mib() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc/self/status")
    return next(int(x.split()[1]) / 1024 for x in status.read_text().splitlines() if x.startswith("VmRSS"))


def test_largest_batch_fits_and_the_next_does_not():
    work, memory_mib = tiny(scope="block"), 7.3

    def peak(batch: int) -> float:
        return plan_memory(work.model_copy(update={"batch_size": batch})).planned_peak_mib

    batch = largest_batch(work, memory_mib)
    assert batch > 2
    assert peak(batch) <= memory_mib < peak(batch + 1)


def test_largest_batch_at_its_bounds():
    """0 where one image is too many; a peak of exactly the memory still fits."""
    one = tiny(scope="attention", mode="train", batch_size=1)
    peak = plan_memory(one).planned_peak_mib
    assert largest_batch(one, peak * 0.999) == 0
    assert largest_batch(one, peak) == 1


def test_a_gpu_is_planned_without_one():
    """Its attention keeps no scores for the backward pass under a learned mask; a CPU's does (torch 2.13)."""
    cpu, cuda = (
        plan_memory(tiny("agent", input_size=16, mode="train"), device) for device in ("cpu", "cuda")
    )
    # two blocks, softmax of [B, H, 49 agents, 64 tokens] towards and from the agents
    scores = 2 * 2 * (2 * 4 * 49 * 64 * 4) / MIB
    assert cpu.activations_mib - cuda.activations_mib > scores
    assert cpu.workspace_mib == 0
    parts = cuda.weights_mib + cuda.inputs_mib + cuda.activations_mib + cuda.workspace_mib
    assert cuda.planned_peak_mib == pytest.approx(parts)
    assert cuda.workspace_mib > 0


def test_autocast_of_a_gpu():
    """Norms are computed in fp32 there, products in bf16 everywhere (torch's documentation of autocast)."""
    x = torch.randn(4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.layer_norm(x, (4,)).dtype is torch.bfloat16
        with CudaRules():
            assert F.layer_norm(x, (4,)).dtype is torch.float32
            assert (x @ x).dtype is torch.bfloat16


@torch.library.custom_op("attnbench_test::without_a_body", mutates_args=(), device_types="cpu")
def with_a_body(x: torch.Tensor) -> torch.Tensor:
    """Double, by way of a copy that nobody outside sees."""
    return (x + x).clone()


@with_a_body.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_own_operations_are_followed_or_refused():
    """The sum inside a custom operation counts; an operation that hides what it does has no number."""
    tensors = LiveTensors(Machine(device="cpu"))
    with fake_tensors(), tensors:
        x = torch.empty(1024)
        y = with_a_body(x)
    assert (y.numel(), tensors.peak) == (1024, 3 * 4096)
    library = torch.library.Library("attnbench_hidden", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CPU")
    with (
        pytest.raises(UnsupportedError, match=r"attnbench_hidden::twice.*unknown"),
        LiveTensors(tensors.machine),
    ):
        torch.ops.attnbench_hidden.twice(torch.ones(2))


def test_passes_that_have_no_plan():
    with pytest.raises(UnsupportedError, match="end-to-end"):
        plan_memory(tiny(scope="end-to-end"))
    with pytest.raises(UserInputError, match="cpu, cuda"):
        plan_memory(tiny(), "tpu")
    with pytest.raises(UnsupportedError, match="flex_attention"):
        plan_memory(tiny("window", {"implementation": "flex"}, input_size=16), "cuda")


def test_numbers_that_decide_the_way_are_refused(monkeypatch):
    """Where a pass looks at numbers that nobody knows before it runs, there is a reason and no plan."""

    def looks(self, x, context):
        return x if x.sum() > 0 else 2 * x

    monkeypatch.setattr("attnbench.backends.softmax.SoftmaxAttention.forward", looks)
    with pytest.raises(UnsupportedError, match=r"fake tensors.*DataDependent.*measure the peak"):
        plan_memory(tiny())


@pytest.mark.parametrize(
    ("text", "mib"),
    [("24GiB", 24576), ("512 MiB", 512), ("1gib", 1024), ("80GB", 80e9 / MIB), ("0.5MB", 5e5 / MIB)],
)
def test_amounts_of_memory(text, mib):
    assert parse_memory(text) == pytest.approx(mib)


@pytest.mark.parametrize("text", ["24", "GiB", "-1GiB", "0GiB", "24TB", "24 G", "", "1e3MiB", "nanGiB"])
def test_amounts_that_are_none(text):
    with pytest.raises(UserInputError, match="MiB, GiB, MB, GB"):
        parse_memory(text)
