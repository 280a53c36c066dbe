"""What closed forms and configurations say of the models that are profiled."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.models.macs import block_macs
from attnbench.models.resolution import input_size
from attnbench.profiling.parts import BlockParts
from attnbench.profiling.rows import ProfileRequest

SOFTMAX = "softmax"  # the backend whose models are the baselines


def block_parts(request: ProfileRequest, resolution: int) -> BlockParts:
    """Return a model's middle block at a resolution in pixels; raises as `input_size` and the options do."""
    config = request.config
    counted = block_macs(config, input_size(config, resolution, request.latent_factor), config.depth // 2)
    return BlockParts(
        model=request.label,
        resolution=resolution,
        projections=counted.attention.linear + counted.attention.unhooked,
        core=counted.attention.attention,
        feed_forward=counted.feed_forward.full,
        modulation=counted.modulation.full + counted.stream_conv.full,
    )


def softmax_models(requests: Sequence[ProfileRequest]) -> list[str]:
    """Return the labels of models with softmax attention in every block, to compare the others with."""
    return [
        request.label
        for request in requests
        if all(request.config.attention_at(i).name == SOFTMAX for i in range(request.config.depth))
    ]
