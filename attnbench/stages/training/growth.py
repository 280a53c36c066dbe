"""Growth of depth: a deeper model starts from the weights of a shallower trained one.

The three strategies of Sana 1.5, arXiv:2501.18427: partial preservation, cyclic and block replication. Read:
the released initialiser (NVlabs/Sana, diffusion/model/model_growth_utils.py), the project's page and a
summary of the paper, not the paper itself. There, an identity has zero output projections of attention and
feed-forward network, since one modulation serves all blocks. Here every block has its own, and the zeros are
in its gates, as in DiT's own start (AdaLN-Zero): they stand behind every attention, whatever it is built of,
and gradients reach the gates at once. Zeros in both places would never move.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from attnbench.errors import UserInputError
from attnbench.models.skeleton import GATES, build_model
from attnbench.specs import GrowthSpec, ModelConfig
from attnbench.stages.training.block_origins import block_origins

SAME = 2.0**-14  # of the largest output: a thousand roundings of fp32


def grown(
    weights: Mapping[str, torch.Tensor], source: ModelConfig, target: ModelConfig, growth: GrowthSpec
) -> dict[str, torch.Tensor]:
    """Return the tensors of the deeper model that come from the shallower one, under their new names.

    What is missing of the target's (fresh blocks, convolutions on the stream of new identities) is to stay as
    built. Raises UserInputError for depths that do not go together.
    """
    found = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.")}
    for place, origin in enumerate(block_origins(source, target, growth)):
        prefix = f"blocks.{origin.block}."
        block = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        if origin.is_new and growth.identity:
            block = _identity(block)
        found |= {f"blocks.{place}.{name}": tensor for name, tensor in block.items()}
    return found


def _identity(block: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copied block's tensors with gates of zero, without its convolution on the stream."""
    tensors = {name: tensor for name, tensor in block.items() if not name.startswith("stream_conv.")}
    for name in [name for name in tensors if name.startswith("modulation.")]:
        parts = list(tensors[name].clone().chunk(6))
        for gate in GATES:
            parts[gate].zero_()
        tensors[name] = torch.cat(parts)
    return tensors


@torch.no_grad()
def require_preserved(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: ModelConfig,
    *,
    side: int,
    num_classes: int,
) -> None:
    """Raise UserInputError unless a grown model computes what its source does, on one image.

    An identity adds zero times something, so there is nothing to round, on a CPU; what is allowed is that a
    GPU adds in another order. What differs by more is an attention that depends on its block's number, and
    stands at another one now. `model` is left in its mode.
    """
    device = next(model.parameters()).device
    shallow = build_model(source, side, num_classes, device=device)
    shallow.load_state_dict(dict(weights))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, source.in_channels, side, side, generator=generator).to(device)
    t, y = torch.full((1,), 500.0, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    was_training = model.training
    ours, theirs = model.eval()(x, t, y), shallow.eval()(x, t, y)
    model.train(was_training)
    if (ours - theirs).abs().max() > SAME * theirs.abs().max():
        names = ", ".join(sorted(source.attention_names()))
        raise UserInputError(
            f"the grown model does not compute what its source does (largest difference "
            f"{(ours - theirs).abs().max().item():.2g}): {names} depends on the number of its block or of "
            "all blocks; choose growth.strategy: preserve or cyclic, which leave the blocks where they "
            "are, or growth.identity: false, which asks for no such thing"
        )
