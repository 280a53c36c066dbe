"""Classifier-free guidance: from a conditional model to a denoiser pulled towards its labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from attnbench.diffusion.ddpm import Denoiser
from attnbench.errors import UserInputError


def guided_denoiser(
    model: nn.Module,
    labels: torch.Tensor,
    *,
    null_label: int,
    scale: float = 1.0,
    channels: Literal["all"] | int = "all",
) -> Denoiser:
    """Bind labels int64 [B] to a model and extrapolate away from its unlabelled prediction.

    The first `channels` channels become `null + scale (labelled - null)`; the others, and a learned
    variance, stay the labelled ones. `"all"` means every channel of x; DiT's released code guides 3
    of 4. One pass with the batch doubled [labelled, null]; scale 1 is the labelled model, undoubled.
    Raises UserInputError when x has fewer channels. Source: arXiv:2207.12598, eq. 6, in DiT's scale.
    """
    if scale == 1:
        return lambda x, time: model(x, time, labels)
    both_labels = torch.cat([labels, torch.full_like(labels, null_label)])

    def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        guided = _count_channels(channels, x.shape[1])
        output = model(torch.cat([x, x]), torch.cat([time, time]), both_labels)
        labelled, null = output.chunk(2)
        pulled = torch.lerp(null[:, :guided], labelled[:, :guided], scale)
        return torch.cat([pulled, labelled[:, guided:]], dim=1)

    return denoise


def _count_channels(channels: Literal["all"] | int, available: int) -> int:
    if channels == "all":
        return available
    if not 1 <= channels <= available:
        raise UserInputError(
            f"guidance_channels must be 'all' or 1 to {available}, the model's input channels, got {channels}"
        )
    return channels
