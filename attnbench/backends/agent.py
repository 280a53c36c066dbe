"""Agent attention: a few pooled agent tokens between queries and keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import PositiveInt, field_validator
from torch import nn

import attnbench
from attnbench.layers import DepthwiseConv, PositionBias, QKVProjection, agent_softmax, pool_tokens


class AgentOptions(attnbench.BackendOptions):
    """Options of `agent`."""

    num_agents: PositiveInt = 49
    """Agent tokens; a square number not above the number of tokens."""
    position_bias: bool = True
    """Learned agent and position biases in both softmaxes."""
    qkv_bias: bool = False
    """Bias of the query, key, value projection (released code: no)."""

    @field_validator("num_agents")
    @classmethod
    def _square(cls, value: int) -> int:
        if math.isqrt(value) ** 2 != value:
            raise ValueError(f"num_agents must be a square number (4, 9, 16, ... 49, 64), got {value}")
        return value


class AgentAttention(nn.Module):
    """softmax(q A^T / sqrt(D) + B2) softmax(A k^T / sqrt(D) + B1) v + DWC_3x3(v), A = pool(q).

    [B, N, C] -> [B, N, C]; both softmaxes through SDPA with an additive bias (on the CPU torch 2.13
    takes its unfused kernel for that).
    Source: Agent Attention arXiv:2312.08874, eq. 5-7, and its released code.
    """

    def __init__(self, site: attnbench.AttentionSite, options: AgentOptions) -> None:
        super().__init__()
        self.num_heads = site.num_heads
        self.side = math.isqrt(options.num_agents)
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.conv = DepthwiseConv(site.dim, 3)
        self.out = nn.Linear(site.dim, site.dim)
        shape = (site.num_heads, options.num_agents, site.grid)
        self.gather_bias = PositionBias(*shape) if options.position_bias else None
        self.spread_bias = PositionBias(*shape) if options.position_bias else None

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        agents = pool_tokens(q, context.grid, self.side)  # [B, n, C]
        biases = {"gather_bias": self.gather_bias, "spread_bias": self.spread_bias}
        o = agent_softmax(q, k, v, agents, self.num_heads, **biases)
        return self.out(o + self.conv(v, context.grid))


def supports(
    site: attnbench.AttentionSite, options: AgentOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more agents than tokens: pooling would only repeat tokens."""
    if options.num_agents > site.num_tokens:
        return (
            f"num_agents={options.num_agents} exceeds the {site.num_tokens} tokens of grid {site.grid}; "
            f"choose at most {math.isqrt(site.num_tokens) ** 2}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: AgentOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 9 N C for the convolution, 4 n N C for the two attentions."""
    n, c = site.num_tokens, site.dim
    return attnbench.MacCount(linear=4 * n * c * c + 9 * n * c, attention=4 * options.num_agents * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `agent`."""
    yield attnbench.AttentionBackend(
        name="agent",
        summary="agent attention: softmax through a few pooled tokens",
        family="compressed",
        source="Agent Attention arXiv:2312.08874",
        options=AgentOptions,
        build=AgentAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
