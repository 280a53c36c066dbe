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


@dataclass(frozen=True, kw_only=True)
class BlockMacs:
    """Multiply-adds of one transformer block at batch 1, by what they are for."""

    attention: MacCount
    """The attention module with its projections."""
    feed_forward: MacCount
    modulation: MacCount
    """AdaLN's layer, once for an image or, in a decoder, for each token; and the two LayerNorms, which only
    the paper counts."""
    stream_conv: MacCount

    @property
    def total(self) -> MacCount:
        """The whole block."""
        return self.attention + self.feed_forward + self.modulation + self.stream_conv


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
        block = block_macs(config, input_size, layer_idx)
        attention += block.attention
        blocks += block.total
    embeddings, conditions = (1, 1) if config.decoupled is None else (2, n)
    ends = MacCount(
        linear=embeddings * n * c * patch + FREQUENCY_DIM * c + c * c + conditions * 2 * c * c + n * c * out,
        norm=2 * n * c,
    )
    return ModelMacs(total=blocks + ends, blocks=blocks, attention=attention)


def block_macs(config: ModelConfig, input_size: int, layer_idx: int) -> BlockMacs:
    """Count one block as `closed_form_macs` does."""
    grid = token_grid(config, input_size)
    n, c = grid[0] * grid[1], config.dim
    conditions = n if layer_idx >= config.encoder_depth else 1
    backend, options = resolve_attention(config.attention_at(layer_idx))
    site = AttentionSite(
        dim=c, num_heads=config.num_heads, grid=grid, layer_idx=layer_idx, depth=config.depth
    )
    return BlockMacs(
        attention=backend.macs(site, options),
        feed_forward=ffn_macs(config.ffn, c, n, layer_idx),
        modulation=MacCount(linear=conditions * 6 * c * c, norm=2 * 2 * n * c),
        stream_conv=MacCount(linear=9 * n * c if config.stream_conv else 0),
    )
