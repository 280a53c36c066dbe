"""What a training step keeps of its forward pass for the backward pass, found on the meta device."""

from __future__ import annotations

import torch

from attnbench.models import build_model
from attnbench.specs import ModelConfig

_BATCH = 2  # of one image some tensors are views of others


def kept_bytes(config: ModelConfig, input_size: int, num_classes: int) -> int:
    """Return the bytes in fp32 that autograd saves per image of a batch; nothing is allocated or computed.

    Each storage counts once, parameters and buffers not at all. It is the peak of a step's activations where
    no layer's own intermediates are larger (`profiling.memory_plan` follows those, too, in longer time).
    Raises what the backend raises.
    """
    model = build_model(config, input_size, num_classes, device="meta").train()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    with torch.device("meta"):
        x = torch.empty(_BATCH, config.in_channels, input_size, input_size)
        t, y = torch.empty(_BATCH), torch.zeros(_BATCH, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x, t, y)
    del output
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own) // _BATCH
