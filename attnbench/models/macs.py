"""Closed-form multiply-adds of a whole model, in the paper's convention and in full."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.contract import AttentionSite, MacCount
from attnbench.models.embeddings import FREQUENCY_DIM
from attnbench.models.ffn import ffn_macs
from attnbench.models.options import resolve_attention
from attnbench.models.skeleton import token_grid
from attnbench.specs import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ModelMacs:
    """Multiply-adds of one forward pass at batch 1: `attention` is part of `blocks`, `blocks` of `total`."""

    total: MacCount
    blocks: MacCount
    """All transformer blocks."""
    attention: MacCount
    """All attention modules with their projections."""


def closed_form_macs(config: ModelConfig, input_size: int) -> MacCount:
    """Count one forward pass at batch 1, without guidance, autoencoder or embedding look-ups.

    `.paper` is the convention of arXiv:2601.13683, `.full` what executes (see MacCount).
    """
    return macs_by_part(config, input_size).total


def macs_by_part(config: ModelConfig, input_size: int) -> ModelMacs:
    """Count as `closed_form_macs` does, and say how much of it is the blocks' and the attentions'."""
    grid = token_grid(config, input_size)
    n, c = grid[0] * grid[1], config.dim
    patch = config.patch_size**2 * config.in_channels
    out = patch * (2 if config.learned_variance else 1)
    attention, blocks = MacCount(), MacCount()
    for layer_idx in range(config.depth):
        of_block = block_macs(config, input_size, layer_idx)
        attention += of_block.attention
        blocks += of_block.blocks
    ends = MacCount(
        linear=n * c * patch + FREQUENCY_DIM * c + c * c + 2 * c * c + n * c * out,
        norm=2 * n * c,
    )
    return ModelMacs(total=blocks + ends, blocks=blocks, attention=attention)


def block_macs(config: ModelConfig, input_size: int, layer_idx: int) -> ModelMacs:
    """Count one transformer block; its total is its own."""
    grid = token_grid(config, input_size)
    n, c = grid[0] * grid[1], config.dim
    backend, options = resolve_attention(config.attention_at(layer_idx))
    site = AttentionSite(
        dim=c, num_heads=config.num_heads, grid=grid, layer_idx=layer_idx, depth=config.depth
    )
    attention = backend.macs(site, options)
    block = attention + ffn_macs(config.ffn, c, n)
    block += MacCount(linear=6 * c * c, norm=2 * 2 * n * c)  # AdaLN, two LayerNorms
    block += MacCount(linear=9 * n * c if config.stream_conv else 0)
    return ModelMacs(total=block, blocks=block, attention=attention)
