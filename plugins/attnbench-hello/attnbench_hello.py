"""A complete attnbench plugin: `hello`, an attention in which every token hears the average token.

Copy this file and pyproject.toml, change the module, `pip install` the folder: your backend is in
`attnbench list backends` and can be named in any suite.
"""

from collections.abc import Iterator

import torch
from torch import nn

import attnbench


class HelloOptions(attnbench.BackendOptions):
    """What a suite may set; unknown keys and wrong types are refused with your names in the message."""

    loudness: float = 1.0
    """Weight of the average."""


class HelloAttention(nn.Module):
    """o_i = W (v_i + loudness * mean_j v_j): [B, N, C] -> [B, N, C]."""

    def __init__(self, site: attnbench.AttentionSite, options: HelloOptions) -> None:
        super().__init__()
        self.loudness = options.loudness
        self.value = nn.Linear(site.dim, site.dim)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        v = self.value(x)  # [B, N, C]
        average = v.mean(dim=1, keepdim=True)  # [B, 1, C]
        context.record("average", average)  # a diagnostic; free when nobody listens
        return self.out(v + self.loudness * average)


def macs(site: attnbench.AttentionSite, options: HelloOptions) -> attnbench.MacCount:
    """Two linear layers; attnbench checks this against two counters."""
    return attnbench.MacCount(linear=2 * site.num_tokens * site.dim**2)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Tell attnbench what this package provides."""
    yield attnbench.AttentionBackend(
        name="hello",
        summary="every token hears the average token (the tutorial plugin)",
        source="attnbench's tutorial",
        options=HelloOptions,
        build=HelloAttention,
        macs=macs,
        complexity="linear",
    )
