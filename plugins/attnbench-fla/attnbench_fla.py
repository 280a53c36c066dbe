"""Adapters that make layers of flash-linear-attention (`fla`) attention backends of attnbench.

Importing this file imports neither fla nor Triton: on a machine without them the backends are
listed, and `supports` says what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import register_flop_formula

import attnbench

MAX_KEY_WIDTH = 256  # of a head: what fla's delta-rule and rotary kernels take


class ScanOptions(attnbench.BackendOptions):
    """Options that all of fla's layers share here."""

    scan: Literal["forward", "bidirectional"] = "bidirectional"
    """`forward`: the causal layer as published, tokens row-major; `bidirectional`: the mean of a forward
    and a reversed pass through the same layer. The latter is attnbench's, not fla's nor the papers'."""


class GLAOptions(ScanOptions):
    """Options of `fla-gla`."""

    expand_k: float = Field(default=0.5, gt=0)
    """Key width over dim."""


class DeltaNetOptions(ScanOptions):
    """Options of `fla-deltanet`."""

    conv_size: int = Field(default=4, ge=2)
    """Taps of the causal convolutions on query, key and value."""


class GatedDeltaNetOptions(DeltaNetOptions):
    """Options of `fla-gated-deltanet`."""

    key_ratio: float = Field(default=0.75, gt=0)
    """Key width over dim (fla: heads x head_dim = 0.75 dim)."""
    expand_v: int = Field(default=2, ge=1)
    """Value width over key width."""


class KdaOptions(DeltaNetOptions):
    """Options of `fla-kda`."""

    expand_v: int = Field(default=1, ge=1)
    """Value width over dim."""


class RetNetOptions(ScanOptions):
    """Options of `fla-retnet`."""

    expand_v: int = Field(default=2, ge=1)
    """Value width over dim."""


class Mamba2Options(ScanOptions):
    """Options of `fla-mamba2`."""

    state_size: int = Field(default=128, ge=1)
    """Width of B and C."""
    expand: int = Field(default=2, ge=1)
    """Inner width over dim; a head is expand x dim / num_heads wide."""
    conv_size: int = Field(default=4, ge=2)
    """Taps of the causal convolution."""
    unfused: bool = False
    """Allow fla's implementation in plain torch where mamba_ssm is missing (slow, much memory)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths of one layer, which decide what it costs; `products` are those with the state a token."""

    heads: int
    key: int
    value: int
    projections: int
    """Multiply-adds of all Linear layers, a token."""
    products: Literal[2, 3]
    """k^T v and q S; the delta rule also needs k S."""
    taps: int = 0
    """Multiply-adds of the causal convolutions, a token."""
    shared_key: bool = False
    """All heads use the same keys (Mamba-2's B and C)."""


class FlaAttention(nn.Module):
    """One of fla's layers on row-major tokens, causal or averaged over both directions.

    [B, N, C] -> [B, N, C]; the maths is fla's (fp32 accumulation in its Triton kernels). On the meta
    device only shapes are walked through, see `on_paper`.
    """

    def __init__(self, layer: nn.Module, shape: Shape, scan: str) -> None:
        super().__init__()
        self.layer, self.shape, self.bidirectional = layer, shape, scan == "bidirectional"

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        forward = self._pass(x)
        if not self.bidirectional:
            return forward
        return (forward + self._pass(x.flip(1)).flip(1)) / 2

    def _pass(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = on_paper(self.layer, self.shape, x) if x.is_meta else self.layer(x)[0]
        return y


def on_paper(layer: nn.Module, shape: Shape, x: torch.Tensor) -> torch.Tensor:
    """Run every matmul of a layer on empty tensors, for counters: Triton has no meta device.

    The Linear and Conv1d modules are the layer's own, so that a wrong closed form of theirs is found;
    the scan is `attnbench_fla::scan` with the recurrent form's formula, which nothing checks.
    """
    tokens = x.shape[:2]
    total = x.new_zeros(())
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            total = total + module(x.new_empty(*tokens, module.in_features)).sum()
        elif isinstance(module, nn.Conv1d):
            padded = x.new_empty(tokens[0], module.in_channels, tokens[1] + module.kernel_size[0] - 1)
            total = total + F.conv1d(padded, module.weight, module.bias, groups=module.groups).sum()
    key = x.new_empty(*tokens, shape.heads, shape.key)
    value = x.new_empty(*tokens, shape.heads, shape.value)
    scanned: torch.Tensor = scan(key, value, shape.products)
    return x + total + scanned.sum()


@torch.library.custom_op("attnbench_fla::scan", mutates_args=())
def scan(key: torch.Tensor, value: torch.Tensor, products: int) -> torch.Tensor:
    """Stand for a recurrence over keys [B, N, H, K] and values [B, N, H, V]; only ever counted."""
    raise NotImplementedError("attnbench_fla::scan stands for fla's kernels on the meta device only")


@scan.register_fake
def _(key: torch.Tensor, value: torch.Tensor, products: int) -> torch.Tensor:
    return torch.empty_like(value)


@register_flop_formula(torch.ops.attnbench_fla.scan)
def _scan_flops(key: tuple[int, ...], value: tuple[int, ...], products: int, *_: Any, **__: Any) -> int:
    """Two per multiply-add, as torch's counter wants it; attnbench's fvcore counter reads it too."""
    batch, tokens, heads, width = value
    return 2 * products * batch * tokens * heads * key[-1] * width


def macs(shape: Shape, site: attnbench.AttentionSite, options: ScanOptions) -> attnbench.MacCount:
    """Recurrent form: `products` x N H K V on the state, the projections, the causal convolutions.

    fla's kernels compute chunk by chunk, which costs more multiply-adds than this but runs faster.
    Both passes of a bidirectional scan count in full, projections included, as they execute.
    """
    passes = 2 if options.scan == "bidirectional" else 1
    tokens = passes * site.num_tokens
    one_head = shape.key if shape.shared_key else shape.heads * shape.key
    return attnbench.MacCount(
        linear=tokens * shape.projections,
        attention=tokens * shape.products * shape.heads * shape.key * shape.value,
        # the paper's convention: a state counts as that of one head, and fla's fused norms are invisible
        attention_cheaper=tokens * shape.products * one_head * shape.heads * shape.value,
        unhooked=tokens * shape.taps,
    )


def gla(site: attnbench.AttentionSite, options: GLAOptions) -> tuple[dict[str, Any], Shape]:
    """S_t = diag(a_t) S_(t-1) + k_t^T v_t with a low-rank gate a."""
    c, rank = site.dim, 16
    key = _width(site, "expand_k", options.expand_k)
    linear = 2 * c * key + 3 * c * c + rank * (c + key)  # q k; v g o; the gate's two factors
    shape = Shape(heads=site.num_heads, key=key // site.num_heads, value=site.head_dim,
                  projections=linear, products=2)  # fmt: skip
    return {"num_heads": site.num_heads, "expand_k": options.expand_k, "gate_low_rank_dim": rank}, shape


def retnet(site: attnbench.AttentionSite, options: RetNetOptions) -> tuple[dict[str, Any], Shape]:
    """S_t = gamma S_(t-1) + k_t^T v_t with one fixed decay a head and 1-D rotary positions."""
    c, value = site.dim, options.expand_v * site.dim
    shape = Shape(heads=site.num_heads, key=site.head_dim, value=value // site.num_heads,
                  projections=2 * c * c + 3 * c * value, products=2)  # fmt: skip
    return {"num_heads": site.num_heads, "expand_v": float(options.expand_v)}, shape


def deltanet(site: attnbench.AttentionSite, options: DeltaNetOptions) -> tuple[dict[str, Any], Shape]:
    """S_t = S_(t-1) + b_t k_t^T (v_t - k_t S_(t-1))."""
    c, heads = site.dim, site.num_heads
    shape = Shape(heads=heads, key=site.head_dim, value=site.head_dim, products=3,
                  projections=4 * c * c + c * heads, taps=3 * c * options.conv_size)  # fmt: skip
    return {"num_heads": heads, "conv_size": options.conv_size}, shape


def gated_deltanet(
    site: attnbench.AttentionSite, options: GatedDeltaNetOptions
) -> tuple[dict[str, Any], Shape]:
    """S_t = a_t (S_(t-1) - b_t k_t^T k_t S_(t-1)) + b_t k_t^T v_t with a scalar decay a."""
    c, heads = site.dim, site.num_heads
    key = _width(site, "key_ratio", options.key_ratio)
    value = options.expand_v * key
    shape = Shape(heads=heads, key=key // heads, value=value // heads, products=3,
                  projections=2 * c * key + 3 * c * value + 2 * c * heads,
                  taps=(2 * key + value) * options.conv_size)  # fmt: skip
    arguments = {"num_heads": heads, "head_dim": key // heads, "expand_v": options.expand_v}
    return arguments | {"conv_size": options.conv_size}, shape


def kda(site: attnbench.AttentionSite, options: KdaOptions) -> tuple[dict[str, Any], Shape]:
    """S_t = (I - b_t k_t^T k_t) diag(a_t) S_(t-1) + b_t k_t^T v_t with one decay a key channel."""
    c, heads, narrow = site.dim, site.num_heads, options.expand_v * site.head_dim
    value = options.expand_v * c
    gates = (
        narrow * (c + c) + narrow * (c + value) + c * heads
    )  # two factors each of a and the output gate; b
    shape = Shape(heads=heads, key=site.head_dim, value=narrow, products=3,
                  projections=2 * c * c + 2 * c * value + gates,
                  taps=(2 * c + value) * options.conv_size)  # fmt: skip
    arguments = {"num_heads": heads, "head_dim": site.head_dim, "expand_v": float(options.expand_v)}
    return arguments | {"conv_size": options.conv_size}, shape


def mamba2(site: attnbench.AttentionSite, options: Mamba2Options) -> tuple[dict[str, Any], Shape]:
    """h_t = exp(A dt_t) h_(t-1) + dt_t B_t^T x_t, y_t = C_t h_t + D x_t: state width in place of keys."""
    c, heads, state = site.dim, site.num_heads, options.state_size
    inner = options.expand * c
    convolved = inner + 2 * state
    shape = Shape(heads=heads, key=state, value=inner // heads, products=2,
                  projections=c * (inner + convolved + heads) + inner * c, shared_key=True,
                  taps=convolved * options.conv_size)  # fmt: skip
    arguments = {"num_heads": heads, "head_dim": inner // heads, "state_size": state}
    return arguments | {"expand": options.expand, "conv_kernel": options.conv_size}, shape


def _width(site: attnbench.AttentionSite, option: str, ratio: float) -> int:
    """Return ratio x dim; raises UnsupportedError where it does not split evenly into heads."""
    width = round(ratio * site.dim)
    if abs(width - ratio * site.dim) > 1e-6 or width % site.num_heads:
        raise ValueError(
            f"{option} x dim must be a multiple of num_heads, got {ratio} x {site.dim} for "
            f"{site.num_heads} heads; change {option} or num_heads"
        )
    return width


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One of fla's layer classes and how a site's widths become its arguments and its cost."""

    layer: str
    plan: Callable[[attnbench.AttentionSite, Any], tuple[dict[str, Any], Shape]]

    def build(self, site: attnbench.AttentionSite, options: Any) -> nn.Module:
        """Import fla and build the layer."""
        arguments, shape = self.plan(site, options)
        layer = getattr(importlib.import_module("fla.layers"), self.layer)
        built = layer(hidden_size=site.dim, layer_idx=site.layer_idx, **arguments)
        return FlaAttention(built, shape, options.scan)

    def macs(self, site: attnbench.AttentionSite, options: Any) -> attnbench.MacCount:
        """Closed form at batch 1; needs no fla."""
        return macs(self.plan(site, options)[1], site, options)

    def supports(
        self, site: attnbench.AttentionSite, options: Any, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Return what is missing or does not fit, in the order in which one would mend it."""
        missing = why_not_here(device) or self._why_not_fused(options, device)
        if missing:
            return missing
        try:
            _, shape = self.plan(site, options)
        except ValueError as error:
            return str(error)
        if dtype is torch.float64:
            return "fla's kernels take float32, bfloat16 and float16, got float64"
        if self.layer != "Mamba2" and shape.key > MAX_KEY_WIDTH:
            return f"a head's keys may be {MAX_KEY_WIDTH} wide in fla, got {shape.key}; use more heads"
        return None

    def _why_not_fused(self, options: Any, device: torch.device) -> str | None:
        if self.layer != "Mamba2" or options.unfused or device.type == "meta":
            return None
        if importlib.util.find_spec("mamba_ssm") is None:
            return (
                "without mamba_ssm fla's Mamba2 computes in plain torch, whose cost is not the method's; "
                "pip install mamba-ssm, or set unfused: true"
            )
        return None


def why_not_here(device: torch.device) -> str | None:
    """Return why fla's layers cannot run on `device`, importing fla only when all else is there."""
    if importlib.util.find_spec("fla") is None:
        return "the package fla is not installed; pip install 'flash-linear-attention[cuda]'"
    if importlib.util.find_spec("triton") is None:
        return "fla's kernels are written in Triton, which is not installed; pip install triton"
    if device.type not in ("cuda", "meta"):
        return f"fla's Triton kernels need a CUDA device, got {device.type}"
    try:
        importlib.import_module("fla.layers")
    except Exception as error:  # noqa: BLE001 - a package built for another torch or Triton fails in many ways
        return f"fla.layers does not import ({type(error).__name__}: {error})"
    return None


CODE = "layer of flash-linear-attention"
BACKENDS: tuple[tuple[str, str, str, type[ScanOptions], Adapter], ...] = (
    ("fla-gla", "gated linear attention", "arXiv:2312.06635", GLAOptions,
     Adapter(layer="GatedLinearAttention", plan=gla)),
    ("fla-mamba2", "Mamba-2's state space layer", "arXiv:2405.21060", Mamba2Options,
     Adapter(layer="Mamba2", plan=mamba2)),
    ("fla-gated-deltanet", "gated delta rule", "arXiv:2412.06464", GatedDeltaNetOptions,
     Adapter(layer="GatedDeltaNet", plan=gated_deltanet)),
    ("fla-kda", "Kimi Delta Attention", "arXiv:2510.26692", KdaOptions,
     Adapter(layer="KimiDeltaAttention", plan=kda)),
    ("fla-deltanet", "delta rule", "arXiv:2406.06484", DeltaNetOptions,
     Adapter(layer="DeltaNet", plan=deltanet)),
    ("fla-retnet", "multi-scale retention", "arXiv:2307.08621", RetNetOptions,
     Adapter(layer="MultiScaleRetention", plan=retnet)),
)  # fmt: skip


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield the six adapters."""
    for name, summary, paper, options, adapter in BACKENDS:
        yield attnbench.AttentionBackend(
            name=name,
            summary=f"{summary} ({CODE}, GPU)",
            source=f"{paper}; fla.layers.{adapter.layer}",
            options=options,
            build=adapter.build,
            macs=adapter.macs,
            supports=adapter.supports,
            complexity="linear",
            family="sequential",
        )
