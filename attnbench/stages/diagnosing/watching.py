"""Looking on while a model runs: what goes into each attention module, and how alike tokens come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from attnbench.models.skeleton import DiffusionTransformer
from attnbench.stages.diagnosing.maps import Site
from attnbench.stages.diagnosing.measures import token_similarity


@dataclass
class Seen:
    """One block during one pass; similarities are [B], one an image."""

    site: Site | None = None
    """Its attention and what that was given, of the first images."""
    attention_similarity: torch.Tensor | None = None
    token_similarity: torch.Tensor | None = None


@contextmanager
def watching(model: DiffusionTransformer, keep_images: int) -> Iterator[list[Seen]]:
    """Yield what is seen of each block while the model runs; inputs of the first `keep_images` are kept."""
    seen, handles = [], []
    for block in model.blocks:
        note, attention = Seen(), cast("nn.Module", block.attn)
        seen.append(note)

        def attended(module: nn.Module, given: tuple[Any, ...], y: torch.Tensor, note: Seen = note) -> None:
            x, context = given
            kept = x[:keep_images].clone()
            note.site = Site(module=module, x=kept, context=context, num_heads=model.config.num_heads)
            note.attention_similarity = token_similarity(y).cpu()

        def passed(_: nn.Module, given: tuple[Any, ...], y: torch.Tensor, note: Seen = note) -> None:
            note.token_similarity = token_similarity(y).cpu()

        handles += [attention.register_forward_hook(attended), block.register_forward_hook(passed)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
