"""Checkpoints of DiT's released code (`DiT-XL-2-256x256.pt` and those of its training script).

Source: facebookresearch/DiT, `models.py` and `download.py` (which takes `ema` of a training checkpoint).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.exchange.dit_config import check_same, class_rows, describe_import, dit_config
from attnbench.exchange.exported import Exported
from attnbench.exchange.layouts import original_layout, rename_from
from attnbench.exchange.weight_files import AVERAGES, LIVE, read_safetensors, unpickle, weights_in
from attnbench.models.embeddings import sincos_position_embedding
from attnbench.specs import ModelConfig

HEADS = {"DiT-S": 6, "DiT-B": 12, "DiT-L": 16, "DiT-XL": 16}


def from_original(
    path: Path,
    config: ModelConfig | None = None,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
) -> Exported:
    """Read a checkpoint of DiT's released code: bare weights, or of a training, wrapped or not.

    The number of heads is `config`'s, `num_heads`, or that of the model which the training's `args` name.
    Raises DataError for foreign or damaged files, UserInputError for other sizes.
    """
    content = None if path.suffix == ".safetensors" else unpickle(path)
    state, entry = (read_safetensors(path), "") if content is None else weights_in(content, path)
    position = state.pop("pos_embed", None)
    if position is None or "x_embedder.proj.weight" not in state:
        raise DataError(f"{path} is no checkpoint of DiT's released code: pos_embed or x_embedder is missing")
    heads = config.num_heads if config is not None else num_heads or _heads_told_by(content)
    if heads is None:
        raise UserInputError(
            f"{path} does not say its number of heads; add --num-heads (DiT-S 6, DiT-B 12, DiT-L and "
            "DiT-XL 16)"
        )
    found = _sizes(state, heads, path)
    if config is not None:
        check_same(found, config, str(path))
    tokens = _side(position, found, path)
    ours = rename_from(original_layout(found.depth), state, str(path))
    ours, num_classes = class_rows(ours, num_classes, str(path))
    taken = f", its live weights `{entry}` (it has no average)" if entry in LIVE else ""
    taken = f", its average `{entry}`" if entry in AVERAGES else taken
    origin = f"a checkpoint of facebookresearch/DiT{taken}"
    description = describe_import(config or found, tokens * found.patch_size, num_classes, origin)
    return Exported(config=description, weights=ours)


def _heads_told_by(content: Any) -> int | None:
    """Return the heads of the model that DiT's training script was asked for (`--model DiT-XL/2`)."""
    args = content.get("args") if isinstance(content, dict) else None
    return HEADS.get(str(getattr(args, "model", "")).partition("/")[0])


def _sizes(state: dict[str, torch.Tensor], num_heads: int, path: Path) -> ModelConfig:
    """Return the sizes that the shapes of the tensors tell; raises DataError."""
    dim, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = len([name for name in state if name.startswith("blocks.") and name.endswith(".attn.proj.weight")])
    out = state.get("final_layer.linear.bias")
    if depth == 0 or out is None or len(out) not in (patch * patch * channels, 2 * patch * patch * channels):
        raise DataError(f"{path} is no whole checkpoint of DiT: blocks or final_layer are missing or cut")
    return dit_config(
        depth=depth,
        dim=dim,
        num_heads=num_heads,
        patch_size=patch,
        in_channels=channels,
        learned_variance=len(out) == 2 * patch * patch * channels,
        qkv_bias=True,
    )


def _side(position: torch.Tensor, config: ModelConfig, path: Path) -> int:
    """Return the tokens per side; raises DataError unless the stored embedding is the one computed here."""
    tokens = math.isqrt(position.shape[-2])
    if tokens * tokens == position.shape[-2] and position.shape[-1] == config.dim:
        computed = sincos_position_embedding(config.dim, (tokens, tokens))
        # fp32 of values up to 1: a unit in the last place each way, and fp32 positions in theirs
        if torch.allclose(position.reshape(-1, config.dim).float(), computed, rtol=0, atol=1e-6):
            return tokens
    raise DataError(
        f"{path}: pos_embed is not DiT's sine-cosine embedding of a square grid; it cannot be computed here"
    )
