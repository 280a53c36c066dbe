"""Timing, capture and kernel names against a stand-in for the device: no GPU is needed."""

from __future__ import annotations

import contextlib
import types
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import attnbench
from attnbench.errors import UnsupportedError
from attnbench.models.recipes import recipe
from attnbench.profiling import cuda
from attnbench.profiling.cuda import (
    WAITS,
    CudaTimer,
    attention_kernels,
    captured,
    device_kernels,
    name_kernels,
)
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload

SECOND_GPU = torch.device("cuda:1")
LAUNCH, FLUSH, COLD, WARM = 1.0, 100.0, 10.0, 6.0


class Device:
    """A queue of kernels with a clock of its own, a host that launches into it, and a cache."""

    def __init__(self) -> None:
        self.host = self.queue = 0.0
        self.cached = False
        self.streams: list[object] = []

    def launch(self, duration: float) -> None:
        self.host += LAUNCH
        self.queue = max(self.queue, self.host) + duration

    def flush(self) -> None:
        self.launch(FLUSH)
        self.cached = False

    def forward(self) -> None:
        self.launch(WARM if self.cached else COLD)
        self.cached = True

    def wait(self, *_: object) -> None:
        self.host = max(self.host, self.queue)


class Event:
    device: Device

    def __init__(self, **_: object) -> None: ...

    def record(self, stream: object) -> None:
        self.device.streams.append(stream)
        self.time = max(self.device.queue, self.device.host)

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.time)

    def elapsed_time(self, end: Event) -> float:
        assert self.device.host >= end.time, "not waited for"
        return end.time - self.time


@pytest.fixture
def device(monkeypatch):
    fake = Device()
    monkeypatch.setattr(Event, "device", fake, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.wait)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    properties = types.SimpleNamespace(L2_cache_size=50 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch, "empty", lambda size, **_: types.SimpleNamespace(zero_=fake.flush, numel=lambda: size)
    )
    return fake


def test_cold_time_holds_the_launch_and_not_the_flush(device):
    """Cold: one launch that the device waits for and a pass on an empty cache; warm: the passes alone."""
    sample = CudaTimer(SECOND_GPU).sample(device.forward, 8)
    assert sample.latency_ms == LAUNCH + COLD
    assert sample.warm_latency_ms == pytest.approx(
        WARM + LAUNCH / 8
    )  # of eight launches only the first shows


def test_cold_stays_cold(device):
    """Each sample flushes anew, with more than the cache holds."""
    timer = CudaTimer(SECOND_GPU)
    assert timer.flush.numel() > 50 * 2**20
    assert [timer.sample(device.forward, 3).latency_ms for _ in range(3)] == [LAUNCH + COLD] * 3


def test_events_lie_on_the_stream_of_the_device(device):
    """The process's current device may be another one, whose stream is idle."""
    CudaTimer(SECOND_GPU).sample(device.forward, 1)
    assert device.streams == ["stream of cuda:1"] * 4


def test_watch_reads_while_the_device_works(device):
    """The clock is read during the warm passes, not before or after."""
    busy = []
    timer = CudaTimer(SECOND_GPU, watch=lambda: busy.append(device.queue > device.host))
    timer.sample(device.forward, 8)
    assert busy == [True]


class Graph:
    """A capture that, like torch's, raises once more when it is left broken."""

    def __init__(self, graph: object, stream: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture
def graphs(monkeypatch):
    replayed = []
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    graph = types.SimpleNamespace(replay=lambda: replayed.append(1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    return replayed


def test_replay_runs_the_graph_not_the_pass(graphs):
    """The pass runs a few times and once more for the capture; a replay gives its tensor."""
    outputs = []
    replay = captured(lambda: outputs.append(torch.zeros(1)) or outputs[-1], SECOND_GPU)
    ran = len(outputs)
    assert ran > 1
    assert replay() is replay() is outputs[-1]
    assert (len(outputs), len(graphs)) == (ran, 2)


def test_failed_capture_says_what_and_where(graphs, monkeypatch):
    """The first error counts, with the line of the model that made it; the one of leaving says nothing."""
    passes = []

    def run() -> torch.Tensor:
        passes.append(1)
        if len(passes) > 3:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        return torch.zeros(1)

    with pytest.raises(UnsupportedError) as caught:
        captured(run, SECOND_GPU)
    message = str(caught.value)
    assert "not permitted when stream is capturing at test_profiling_cuda.py:" in message
    assert 'raise RuntimeError("CUDA error' in message
    assert "previous error" not in message
    assert "\n" not in message


def test_no_memory_for_a_capture_is_no_memory(graphs, monkeypatch):
    """Out of memory stays what it is: the row says so, not that the pass cannot be captured."""
    monkeypatch.setattr(Graph, "__exit__", lambda *_: None)
    passes = []

    def run() -> torch.Tensor:
        passes.append(1)
        if len(passes) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1)

    with pytest.raises(torch.OutOfMemoryError):
        captured(run, SECOND_GPU)


@pytest.mark.parametrize(
    ("attention", "options", "kernels"),
    [
        ("softmax", {}, ["flash"]),
        ("softmax", {"implementation": "math"}, ["bmm", "softmax"]),
        ("linear", {}, ["bmm"]),
    ],
)
def test_kernels_of_a_pass(attention, options, kernels):
    """What really ran, here on a CPU, whose fused softmax attention is a flash one, too."""
    module = attnbench.build_attention(attention, dim=32, num_heads=2, grid=(4, 4), **options)
    x = torch.randn(1, 16, 32)
    with torch.no_grad():
        assert attention_kernels(lambda: module(x)) == kernels


def test_math_hides_what_it_is_made_of():
    """Softmax attention that torch makes of two products is one name."""
    q = torch.randn(1, 2, 16, 32)

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            F.scaled_dot_product_attention(q, q, q)

    assert attention_kernels(run) == ["math"]


@pytest.mark.parametrize(
    ("words", "waits"), [("called a synchronizing CUDA operation", True), ("else", False)]
)
def test_waiting_for_the_device_is_told(monkeypatch, words, waits):
    """Torch's warnings of it are heard, and its mode is put back."""
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(cuda, "name_kernels", lambda names: ["bmm"])

    def run() -> None:
        assert modes[-1] == "warn"
        warnings.warn(words, stacklevel=1)

    assert attention_kernels(run) == ["bmm", *[WAITS] * waits]
    assert modes[-1] == "default"


@pytest.mark.parametrize(
    ("kernel", "short"),
    [  # as traces of an H100 and others show them
        (
            "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
            "cudnn",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_knob_7_64x128x128_4x1x1_kernel0_0", "cudnn"),
        (
            "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>)",
            "efficient",
        ),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "efficient"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>", "flash"),
        (
            "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>",
            "flash",
        ),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>", "flash"),
        ("triton_tem_fused_flex_attention_backward_2", "flex"),
        ("aten::_scaled_dot_product_efficient_attention_backward", "efficient"),
        ("aten::_scaled_dot_product_cudnn_attention", "cudnn"),
    ],
)
def test_names_of_kernels(kernel, short):
    """Each kernel counts as one family, whatever else stands in its name."""
    assert name_kernels([kernel]) == [short]


@pytest.mark.parametrize(
    "kernel",
    [
        "nvjet_tst_128x96_64x7_4x1_v_bz_bias_TNN",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_optimized>",
        "triton_tem_fused_addmm_relu_3",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>",
    ],
)
def test_other_kernels_are_no_attention(kernel):
    """Products, convolutions and norms of the rest of the model tell nothing of its attention."""
    assert name_kernels([kernel]) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    """A real pass is timed, its replay gives its output, and both ways to name its kernels agree."""
    device = torch.device("cuda")
    workload = Workload(config=recipe("tiny-dit"), input_size=32, num_classes=10, precision="bf16")
    run = build_pass(workload, device).run
    expected = run().clone()
    names = attention_kernels(run)
    replay = captured(run, device)
    # bf16 keeps 8 bits; another kernel under capture may round every one of some ten sums differently
    torch.testing.assert_close(replay(), expected, rtol=2**-4, atol=2**-4 * float(expected.abs().max()))
    sample = CudaTimer(device).sample(replay, 4)
    assert sample.latency_ms > 0 < sample.warm_latency_ms
    assert set(name_kernels(device_kernels(run))) == set(names) & {"cudnn", "flash", "efficient"} != set()
