"""Depthwise convolutions on the token grid: a plain one, and one that trains as several branches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import nn


class DepthwiseConv(nn.Module):
    """A depthwise k x k convolution over tokens [B, N, C] laid out row-major on a grid.

    `channels` may divide C: the same filters then serve every group of channels (heads that share
    one convolution, as in focused linear attention).
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, N, C] -> [B, N, C]."""
        return on_grid(self.conv, x, grid, self.conv.in_channels)


class Branch(nn.Module):
    """A bias-free depthwise convolution and its BatchNorm."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(channels, channels, size, padding=padding, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image))


class ReparameterisedConv(nn.Module):
    """Depthwise branches (3x3 + 1x3 + 3x1), each with BatchNorm, that fuse into one 3x3 convolution.

    Training sees the branches, inference one convolution with bias (`fuse`). The BatchNorm
    statistics are buffers: average them with the weights.
    Source: ACNet arXiv:1908.03930; used by arXiv:2601.13683, eq. 9.
    """

    def __init__(self, channels: int, sizes: Sequence[tuple[int, int]] = ((3, 3), (1, 3), (3, 1))) -> None:
        super().__init__()
        self.channels = channels
        self.branches = nn.ModuleList(Branch(channels, size) for size in sizes)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[B, N, C] -> [B, N, C]."""
        return on_grid(self._sum_of_branches, x, grid, self.channels)

    def _sum_of_branches(self, image: torch.Tensor) -> torch.Tensor:
        first, *others = (branch(image) for branch in self.branches)
        for other in others:
            first = first + other
        return first

    @torch.no_grad()
    def fuse(self) -> DepthwiseConv:
        """Return the equivalent single convolution, using the running statistics."""
        branches = cast("list[Branch]", list(self.branches))
        fused = DepthwiseConv(self.channels, 3).to(branches[0].conv.weight)
        weight, bias = fused.conv.weight.zero_(), cast("nn.Parameter", fused.conv.bias).zero_()
        for branch in branches:
            norm, (height, width) = branch.norm, branch.conv.kernel_size
            mean, var = cast("torch.Tensor", norm.running_mean), cast("torch.Tensor", norm.running_var)
            scale = norm.weight / (var + norm.eps).sqrt()  # [C]
            top, left = (3 - height) // 2, (3 - width) // 2
            place = weight[:, :, top : top + height, left : left + width]
            place += branch.conv.weight * scale[:, None, None, None]
            bias += norm.bias - mean * scale
        return fused.train(self.training)


def fuse_reparameterised(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode in which every module that has a `fuse()` is replaced by its result."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            fuse = getattr(child, "fuse", None)
            if callable(fuse):
                setattr(parent, name, fuse())
    return model.eval()


def on_grid(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, grid: tuple[int, int], channels: int
) -> torch.Tensor:
    """Apply an image function [B*, channels, H, W] to tokens [B, N, C], C = groups x channels.

    Tokens are an image with its channels last, which convolutions take as it is where there is one group.
    """
    groups = x.shape[-1] // channels
    if groups == 1:  # strides in so many words: a batch of one has any, to which a convolution pays heed
        image = x.contiguous().unflatten(1, grid).permute(0, 3, 1, 2)
        return function(image).permute(0, 2, 3, 1).flatten(1, 2)
    height, width = grid
    image = rearrange(x, "b (y x) (g c) -> (b g) c y x", y=height, x=width, c=channels)
    return rearrange(function(image), "(b g) c y x -> b (y x) (g c)", g=groups)
