"""Weights of one model into another, of another attention or deeper: the same parts are copied, by name.

Nothing is copied because shapes happen to agree: a tensor needs its name and its part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from attnbench.layers import QKVProjection

ATTENTION, FFN = re.compile(r"(blocks\.\d+\.attn)\.(.+)"), re.compile(r"(blocks\.\d+\.ffn)\.(.+)")
SHELL = ("depth", "dim", "patch_size", "in_channels", "input", "learned_variance", "decoupled")
"""Settings of a model in which two must agree for weights to go from one to the other."""
SHARED = ("qkv.qkv.weight", "qkv.qkv.bias", "out.weight", "out.bias")


@dataclass(frozen=True)
class TransferReport:
    """Source tensors copied, source tensors left with the reason, target tensors that stay as initialised."""

    copied: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


def transfer(
    source: Mapping[str, torch.Tensor],
    target: nn.Module,
    same_attention: Collection[int] = (),
    *,
    projections: bool = True,
) -> TransferReport:
    """Copy into `target`, in place, the tensors of a source state that stand for the same part there.

    Copied are the shell (embeddings, modulations, output), a feed-forward network of the same kind as a
    whole, attentions as a whole in the blocks `same_attention`, elsewhere, with `projections`, `qkv` and
    `out` of those built on `layers.QKVProjection`; each only at equal name and shape. Both state dicts are of
    `DiffusionTransformer`s.
    """
    state = target.state_dict()
    whole = {f"blocks.{block}.attn" for block in same_attention}
    reasons = {
        name: _why_left(name, tensor, source, state, target, whole, projections)
        for name, tensor in sorted(source.items())
    }
    copied = [name for name, reason in reasons.items() if reason is None]
    with torch.no_grad():
        for name in copied:
            state[name].copy_(source[name])
    return TransferReport(
        copied=tuple(copied),
        left=tuple((name, reason) for name, reason in reasons.items() if reason is not None),
        missing=tuple(name for name in sorted(state) if name not in copied),
    )


def _why_left(
    name: str,
    tensor: torch.Tensor,
    source: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    target: nn.Module,
    whole: Collection[str],
    projections: bool,
) -> str | None:
    """Return why a source tensor has no place in the target, or None: then it is copied."""
    attention, ffn = ATTENTION.fullmatch(name), FFN.fullmatch(name)
    if attention is not None and attention[1] not in whole:
        if not projections:
            return "belongs to the attention, which is not inherited"
        reason = _why_not_shared(attention[1], attention[2], target)
        if reason is not None:
            return reason
    if ffn is not None and _shapes(source, ffn[1]) != _shapes(state, ffn[1]):
        return "the feed-forward networks differ in kind or width"
    if name not in state:
        return "the target has no such tensor"
    if state[name].shape != tensor.shape:
        return f"shape {_shape(tensor)}, the target's is {_shape(state[name])}"
    return None


def _why_not_shared(site: str, rest: str, target: nn.Module) -> str | None:
    """Return why a tensor of an attention means nothing to the target's, or None."""
    if rest not in SHARED:
        return "belongs to the source's attention alone"
    try:
        module = target.get_submodule(site)
    except AttributeError:
        return "the target has no such block"
    if not isinstance(getattr(module, "qkv", None), QKVProjection):
        return "the target's attention has no projection that means the same"
    if rest.startswith("out.") and type(getattr(module, "out", None)) is not nn.Linear:
        return "the target's attention has no output projection that means the same"
    return None


def _shapes(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items() if name.startswith(f"{prefix}.")}


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"
