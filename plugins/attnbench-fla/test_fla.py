"""Without fla: names, reasons and closed forms. With fla and Triton: counts, and the maths under Triton's
interpreter (`TRITON_INTERPRET=1 pytest`), against recurrences that read like the papers."""

import importlib
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnbench
import attnbench_fla
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.torchvision_ops import define_missing_ops

BACKENDS = {backend.name: backend for backend in attnbench_fla.attnbench_backends()}
NAMES = ["fla-gla", "fla-mamba2", "fla-gated-deltanet", "fla-kda", "fla-deltanet", "fla-retnet"]
HAS_FLA = all(importlib.util.find_spec(name) for name in ("fla", "triton", "transformers"))
INTERPRETED = HAS_FLA and os.environ.get("TRITON_INTERPRET") == "1"
needs_fla = pytest.mark.skipif(
    not HAS_FLA, reason="runs fla's own layers: pip install './plugins/attnbench-fla[fla]'"
)
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED,
    reason="runs fla's kernels on the CPU, with fla: TRITON_INTERPRET=1 pytest plugins/attnbench-fla",
)
SITE = attnbench.AttentionSite(dim=64, num_heads=2, grid=(5, 7))


def build(name: str, site: attnbench.AttentionSite = SITE, **options: Any) -> nn.Module:
    define_missing_ops()  # fla imports transformers, which imports torchvision
    backend = BACKENDS[name]
    torch.manual_seed(0)
    return backend.build(site, backend.options(**options))


def pretend_installed(monkeypatch: pytest.MonkeyPatch, missing: str = "nothing") -> None:
    """Let every package be found, and fla import, except the missing one."""
    real = importlib.import_module
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(importlib, "import_module", lambda name: None if name == "fla.layers" else real(name))


def test_the_plugin_lists_its_six_backends() -> None:
    """Every adapter is there whether or not fla is installed."""
    assert list(BACKENDS) == NAMES


def test_importing_the_plugin_imports_no_fla() -> None:
    """A broken or missing fla cannot take the plugin down with it."""
    code = "import sys, attnbench_fla; sys.exit('fla' in sys.modules)"
    path = os.pathsep.join(p for p in sys.path if p)
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}).returncode == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("missing", "device", "reason"),
    [
        ("fla", "meta", "pip install 'flash-linear-attention[cuda]'"),
        ("triton", "cuda", "pip install triton"),
        ("nothing", "cpu", "need a CUDA device, got cpu"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str, device: str, reason: str
) -> None:
    """The reason says which package or device is missing, on a machine that lacks exactly that one."""
    pretend_installed(monkeypatch, missing=missing)
    backend = BACKENDS[name]
    said = backend.supports(SITE, backend.options(), torch.float32, torch.device(device))
    assert said is not None
    assert reason in said


def test_mamba2_does_not_fall_back_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mamba_ssm fla would compute in plain torch: refused, unless asked for."""
    pretend_installed(monkeypatch, missing="mamba_ssm")
    backend, cuda = BACKENDS["fla-mamba2"], torch.device("cuda")
    said = backend.supports(SITE, backend.options(), torch.float32, cuda)
    assert said is not None
    assert "mamba-ssm" in said
    assert backend.supports(SITE, backend.options(unfused=True), torch.float32, cuda) is None


def test_widths_that_do_not_split_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key width that its heads cannot share is a reason, not an assertion inside fla."""
    pretend_installed(monkeypatch)
    backend = BACKENDS["fla-gla"]
    odd = attnbench.AttentionSite(dim=66, num_heads=2, grid=(4, 4))
    said = backend.supports(odd, backend.options(), torch.float32, torch.device("cuda"))
    assert said is not None
    assert "multiple of num_heads" in said


def test_gla_costs_what_the_paper_says() -> None:
    """C = 64, K = 32, two heads: q, k 2 C K; v, g, out 3 C^2; gate 16 (C + K); state 2 K V a head."""
    backend = BACKENDS["fla-gla"]
    count = backend.macs(SITE, backend.options(scan="forward"))
    assert count.linear == 35 * (2 * 64 * 32 + 3 * 64 * 64 + 16 * (64 + 32))
    assert count.attention == 35 * 2 * 2 * 16 * 32
    assert backend.macs(SITE, backend.options(scan="bidirectional")).full == 2 * count.full


class Alone(nn.Module):
    """A module with its context filled in, as the counters want it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x, attnbench.AttentionContext(grid=SITE.grid))
        return y


@needs_fla
@pytest.mark.parametrize("scan", ["forward", "bidirectional"])
@pytest.mark.parametrize("name", NAMES)
def test_both_counters_agree_with_the_closed_form(name: str, scan: str) -> None:
    """The Linear and Conv1d modules that fla builds cost what the closed form says."""
    with torch.device("meta"):
        model, x = Alone(build(name, scan=scan)).eval(), torch.empty(1, 35, 64)
    backend = BACKENDS[name]
    expected = backend.macs(SITE, backend.options(scan=scan)).full
    assert count_with_torch(model, (x,)).macs == expected
    assert count_with_fvcore(model, (x,)).macs == expected


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's autotuner asks for a GPU to time configurations on: let it take the first one."""
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(Autotuner, "_bench", lambda self, *args, config, **kwargs: [0.0, 0.0, 0.0])


def heads(z: torch.Tensor, count: int) -> torch.Tensor:
    return z.unflatten(-1, (count, -1))


def rms(z: torch.Tensor, norm: Any) -> torch.Tensor:
    return z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def convolve(conv: nn.Conv1d, z: torch.Tensor) -> torch.Tensor:
    """A causal depthwise convolution over tokens [N, C], then SiLU."""
    padded = F.pad(z.T, (conv.kernel_size[0] - 1, 0))
    return F.silu(F.conv1d(padded[None], conv.weight, conv.bias, groups=conv.groups)[0].T)


def unit(z: torch.Tensor) -> torch.Tensor:
    return z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def gla(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """S_t = diag(a_t) S_(t-1) + k_t^T v_t; o_t = q_t S_t / sqrt(K); a_t = sigmoid(.)^(1/16)."""
    q, k, v, g = (heads(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.g_proj))
    a = torch.sigmoid(heads(layer.gk_proj(x), 2)) ** (1 / 16)
    state, rows = torch.zeros(2, q.shape[-1], v.shape[-1]), []
    for t in range(len(x)):
        state = a[t, :, :, None] * state + k[t, :, :, None] * v[t, :, None]
        rows.append(torch.einsum("hk,hkv->hv", q[t], state) / q.shape[-1] ** 0.5)
    o = rms(torch.stack(rows), layer.g_norm_swish_gate) * F.silu(g)
    return layer.o_proj(o.flatten(1))  # type: ignore[no-any-return]


def retnet(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """S_t = gamma S_(t-1) + k_t^T v_t with rotated q and k; gamma_h = 1 - 2^(-5-h)."""
    q, k, v, g = (heads(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.g_proj))
    half = q.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)  # [N, K / 2]

    def turn(z: torch.Tensor) -> torch.Tensor:
        a, b = z.chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    q, k = turn(q), turn(k)
    gamma = 1 - 2.0 ** (-5 - torch.arange(2.0))
    state, rows = torch.zeros(2, q.shape[-1], v.shape[-1]), []
    for t in range(len(x)):
        state = gamma[:, None, None] * state + k[t, :, :, None] * v[t, :, None]
        rows.append(torch.einsum("hk,hkv->hv", q[t], state) / q.shape[-1] ** 0.5)
    o = rms(torch.stack(rows), layer.g_norm_swish_gate) * F.silu(g)
    return layer.o_proj(o.flatten(1))  # type: ignore[no-any-return]


def delta(layer: Any, x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """S_t = (I - b_t k_t^T k_t) diag(a_t) S + b_t k_t^T v_t with unit q and k; rows before norm and gate.

    The decay a is [N, 2, K], or [N, 2, 1] where all channels of a head share it.
    """
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    convolutions = (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d)
    q, k, v = (heads(convolve(c, p(x)), 2) for p, c in zip(projections, convolutions, strict=True))
    q, k, b = unit(q), unit(k), layer.b_proj(x).sigmoid()
    state, rows = torch.zeros(2, q.shape[-1], v.shape[-1]), []
    for t in range(len(x)):
        state = decay[t, :, :, None] * state
        error = v[t] - torch.einsum("hk,hkv->hv", k[t], state)
        state = state + k[t, :, :, None] * (b[t, :, None] * error)[:, None]
        rows.append(torch.einsum("hk,hkv->hv", q[t], state) / q.shape[-1] ** 0.5)
    return torch.stack(rows)


def deltanet(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The delta rule without decay."""
    return layer.o_proj(rms(delta(layer, x, torch.ones(len(x), 2, 1)), layer.o_norm).flatten(1))  # type: ignore[no-any-return]


def gated_deltanet(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The delta rule with decay exp(-exp(A) softplus(W_a x + dt))."""
    decay = torch.exp(-layer.A_log.exp() * F.softplus(layer.a_proj(x) + layer.dt_bias))
    o = rms(delta(layer, x, decay[..., None]), layer.o_norm) * F.silu(heads(layer.g_proj(x), 2))
    return layer.o_proj(o.flatten(1))  # type: ignore[no-any-return]


def kda(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The delta rule with a decay exp(-exp(A) softplus(W_2 W_1 x + dt)) in every channel, sigmoid gate."""
    decay = torch.exp(-layer.A_log.exp()[:, None] * heads(F.softplus(layer.f_proj(x) + layer.dt_bias), 2))
    o = rms(delta(layer, x, decay), layer.o_norm) * torch.sigmoid(heads(layer.g_proj(x), 2))
    return layer.o_proj(o.flatten(1))  # type: ignore[no-any-return]


def mamba2(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """h_t = exp(A dt) h_(t-1) + dt B_t^T x_t; y_t = C_t h_t + D x_t; RMSNorm(y SiLU(z))."""
    inner, state_size = layer.intermediate_size, layer.ssm_state_size
    z, mixed, dt = layer.in_proj(x).split([inner, inner + 2 * state_size, 2], -1)
    values, b, c = convolve(layer.conv1d, mixed).split([inner, state_size, state_size], -1)
    values, dt = heads(values, 2), F.softplus(dt + layer.dt_bias)
    decay = torch.exp(-layer.A_log.exp() * dt)
    state, rows = torch.zeros(2, state_size, values.shape[-1]), []
    for t in range(len(x)):
        step = b[t, None, :, None] * (dt[t, :, None] * values[t])[:, None]
        state = decay[t, :, None, None] * state + step
        rows.append(torch.einsum("k,hkv->hv", c[t], state) + layer.D[:, None] * values[t])
    y = torch.stack(rows).flatten(1) * F.silu(z)
    return layer.out_proj(rms(y, layer.norm))  # type: ignore[no-any-return]


REFERENCES = {
    "fla-gla": gla,
    "fla-mamba2": mamba2,
    "fla-gated-deltanet": gated_deltanet,
    "fla-kda": kda,
    "fla-deltanet": deltanet,
    "fla-retnet": retnet,
}


@needs_interpreter
@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize("scan", ["forward", "bidirectional"])
@pytest.mark.parametrize("name", NAMES)
def test_the_layer_computes_its_recurrence(name: str, scan: str) -> None:
    """fla's kernels agree with the recurrence in one direction, and with the mean of both in two."""
    module = build(name, scan=scan).eval()
    x = torch.randn(1, 35, 64)
    with torch.no_grad():
        y = module(x, attnbench.AttentionContext(grid=SITE.grid))
        expected = REFERENCES[name](module.layer, x[0])
        if scan == "bidirectional":
            expected = (expected + REFERENCES[name](module.layer, x[0].flip(0)).flip(0)) / 2
    # 35 steps of fp32, each a few roundings
    torch.testing.assert_close(y[0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_interpreter
@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize("name", ["fla-gla", "fla-mamba2", "fla-deltanet"])
def test_gradients_reach_every_parameter(name: str) -> None:
    """Training mode runs, and no parameter of the layer is left without a gradient.

    Not for fla-gated-deltanet and fla-retnet: Triton's interpreter cannot run their chunked kernels
    (AttributeError: 'int' object has no attribute 'to', triton 3.9.0, fla 0.6.0).
    """
    module = build(name)
    x = torch.randn(1, 35, 64, requires_grad=True)
    module(x, attnbench.AttentionContext(grid=SITE.grid)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
