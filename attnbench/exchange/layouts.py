"""The names of a DiT's tensors here, in diffusers and in DiT's released code, and the way between them.

Sources: facebookresearch/DiT `models.py`; diffusers `convert_dit_to_diffusers.py`, `DiTTransformer2DModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from attnbench.errors import DataError
from attnbench.models.options import resolve_attention
from attnbench.specs import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and the tensors that stand for it elsewhere.

    `copies`: each of them is the same tensor. `rows`: they are its equal parts along the first dimension.
    """

    ours: str
    theirs: tuple[str, ...]
    relation: Literal["copies", "rows"] = "copies"


def diffusers_layout(depth: int, qkv_bias: bool) -> list[Entry]:
    """Return the entries of a `DiTTransformer2DModel`; each of its blocks has its own embedders."""
    blocks = [f"transformer_blocks.{n}" for n in range(depth)]
    embedders = {
        "time_embed.expand": "timestep_embedder.linear_1",
        "time_embed.out": "timestep_embedder.linear_2",
    }
    entries = [
        *_linear("patch_embed.proj", "pos_embed.proj"),
        *_linear("final.modulation.1", "proj_out_1"),
        *_linear("final.linear", "proj_out_2"),
    ]
    for ours, theirs in embedders.items():
        entries += _linear(ours, *(f"{block}.norm1.emb.{theirs}" for block in blocks))
    table = "norm1.emb.class_embedder.embedding_table.weight"
    entries.append(Entry("label_embed.table.weight", tuple(f"{block}.{table}" for block in blocks)))
    for n, block in enumerate(blocks):
        entries += _linear(f"blocks.{n}.modulation.1", f"{block}.norm1.linear")
        for leaf in ("weight", "bias") if qkv_bias else ("weight",):
            parts = tuple(f"{block}.attn1.to_{letter}.{leaf}" for letter in "qkv")
            entries.append(Entry(f"blocks.{n}.attn.qkv.qkv.{leaf}", parts, "rows"))
        entries += _linear(f"blocks.{n}.attn.out", f"{block}.attn1.to_out.0")
        entries += _linear(f"blocks.{n}.ffn.fc1", f"{block}.ff.net.0.proj")
        entries += _linear(f"blocks.{n}.ffn.fc2", f"{block}.ff.net.2")
    return entries


def original_layout(depth: int) -> list[Entry]:
    """Return the entries of DiT's released checkpoints (beside `pos_embed`, which is computed here)."""
    entries = [
        *_linear("patch_embed.proj", "x_embedder.proj"),
        *_linear("time_embed.expand", "t_embedder.mlp.0"),
        *_linear("time_embed.out", "t_embedder.mlp.2"),
        Entry("label_embed.table.weight", ("y_embedder.embedding_table.weight",)),
        *_linear("final.modulation.1", "final_layer.adaLN_modulation.1"),
        *_linear("final.linear", "final_layer.linear"),
    ]
    for n in range(depth):
        entries += _linear(f"blocks.{n}.modulation.1", f"blocks.{n}.adaLN_modulation.1")
        entries += _linear(f"blocks.{n}.attn.qkv.qkv", f"blocks.{n}.attn.qkv")
        entries += _linear(f"blocks.{n}.attn.out", f"blocks.{n}.attn.proj")
        entries += _linear(f"blocks.{n}.ffn.fc1", f"blocks.{n}.mlp.fc1")
        entries += _linear(f"blocks.{n}.ffn.fc2", f"blocks.{n}.mlp.fc2")
    return entries


def _linear(ours: str, *theirs: str) -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        yield Entry(f"{ours}.{leaf}", tuple(f"{name}.{leaf}" for name in theirs))


def rename_to(entries: list[Entry], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return our state under the other layout's names."""
    renamed: dict[str, torch.Tensor] = {}
    for entry in entries:
        tensor = state[entry.ours]
        if entry.relation == "copies":
            renamed |= dict.fromkeys(entry.theirs, tensor)
        else:
            renamed |= dict(zip(entry.theirs, tensor.chunk(len(entry.theirs)), strict=True))
    return renamed


def rename_from(
    entries: list[Entry], state: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Return another layout's state under our names, in fp32 (exact from half precision).

    Raises DataError when a tensor is missing or without a place here, or when copies differ.
    """
    known = {name for entry in entries for name in entry.theirs}
    missing, extra = sorted(known - state.keys()), sorted(state.keys() - known)
    if missing or extra:
        raise DataError(
            f"{source} is not a DiT of {_depth_of(entries)} blocks: {_some('missing', missing)}"
            f"{_some('without a place here', extra)}check the number of blocks and that the file is whole"
        )
    renamed = {}
    for entry in entries:
        tensors = [state[name].float() for name in entry.theirs]
        if entry.relation == "rows":
            renamed[entry.ours] = torch.cat(tensors)
            continue
        for name, tensor in zip(entry.theirs, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                raise DataError(
                    f"{source}: {name} differs from {entry.theirs[0]}: this model was fine-tuned with "
                    "embedders of each block's own, a DiT has one for all; it cannot be imported"
                )
        renamed[entry.ours] = tensors[0]
    return renamed


def _depth_of(entries: list[Entry]) -> int:
    return sum(entry.ours.endswith("attn.out.weight") for entry in entries)


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}; "


def qkv_bias_of(config: ModelConfig) -> bool:
    """Return whether the projections of a softmax model have biases."""
    return _qkv_bias_at(config, 0)


def _qkv_bias_at(config: ModelConfig, block: int) -> bool:
    _, options = resolve_attention(config.attention_at(block))
    return bool(getattr(options, "qkv_bias", True))


def not_a_dit(config: ModelConfig) -> list[str]:
    """Return every reason why a model is not the architecture that diffusers calls DiT."""
    reasons = []
    if config.attention_names() != {"softmax"}:
        reasons.append(f"its attention is {', '.join(sorted(config.attention_names()))}, not softmax")
    elif len({_qkv_bias_at(config, block) for block in range(config.depth)}) > 1:
        reasons.append("its blocks differ in qkv_bias")
    if config.ffn.kind != "mlp":
        reasons.append(f"its feed-forward network is {config.ffn.kind}, not mlp")
    elif config.ffn.hidden_width(config.dim) != 4 * config.dim:
        reasons.append(f"its MLP is {config.ffn.hidden_width(config.dim)} wide, not 4 x {config.dim}")
    if config.position_embedding != "sincos":
        reasons.append(f"its position embedding is {config.position_embedding}, not sincos")
    if config.decoupled is not None:
        reasons.append("it is decoupled into encoder and decoder")
    if config.stream_conv:
        reasons.append("it has convolutions on the stream")
    return reasons
