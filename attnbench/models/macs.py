"""Closed-form multiply-adds of a whole model, in the paper's convention and in full."""

from __future__ import annotations

from attnbench.contract import AttentionSite, MacCount
from attnbench.models.embeddings import FREQUENCY_DIM
from attnbench.models.ffn import ffn_macs
from attnbench.models.options import resolve_attention
from attnbench.models.skeleton import token_grid
from attnbench.specs import ModelConfig


def closed_form_macs(config: ModelConfig, input_size: int) -> MacCount:
    """Count one forward pass at batch 1, without guidance, autoencoder or embedding look-ups.

    `.paper` is the convention of arXiv:2601.13683, `.full` what executes (see MacCount).
    """
    grid = token_grid(config, input_size)
    n, c = grid[0] * grid[1], config.dim
    patch = config.patch_size**2 * config.in_channels
    out = patch * (2 if config.learned_variance else 1)
    total = MacCount(
        linear=n * c * patch + FREQUENCY_DIM * c + c * c + 2 * c * c + n * c * out,
        norm=2 * n * c,
    )
    for layer_idx in range(config.depth):
        backend, options = resolve_attention(config.attention_at(layer_idx))
        site = AttentionSite(
            dim=c, num_heads=config.num_heads, grid=grid, layer_idx=layer_idx, depth=config.depth
        )
        total += MacCount(linear=6 * c * c, norm=2 * 2 * n * c)  # AdaLN, two LayerNorms
        total += backend.macs(site, options) + ffn_macs(config.ffn, c, n)
    return total
