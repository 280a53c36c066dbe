"""Attention mediators: agent attention whose number of pooled tokens follows the diffusion timestep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from pydantic import field_validator
from torch import nn

import attnbench
from attnbench.errors import UserInputError
from attnbench.layers import DepthwiseConv, PositionBias, QKVProjection, agent_softmax, pool_tokens

END = 1000.0  # timesteps lie in [0, 1000); the noise side is the far one


class MediatorsOptions(attnbench.BackendOptions):
    """Options of `mediators`."""

    schedule: tuple[tuple[float, int], ...] = ((333.0, 64), (667.0, 16), (1000.0, 4))
    """Pairs (upper timestep bound, mediators), bounds rising to 1000: an image at timestep t takes the first
    pair with t < bound. 4, 16 and 64 are the released numbers, the bounds are ours (thirds)."""
    position_bias: bool = True
    """Learned agent and position biases in both softmaxes, one set for each number of mediators."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""

    @field_validator("schedule")
    @classmethod
    def _covers_all_timesteps(cls, value: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        bounds = [bound for bound, _ in value]
        rising = all(low < high for low, high in zip([0.0, *bounds], bounds, strict=False))
        if not bounds or not rising or bounds[-1] != END:
            raise ValueError(f"bounds of schedule must rise from above 0 to exactly 1000, got {bounds}")
        for _, number in value:
            if number < 1 or math.isqrt(number) ** 2 != number:
                raise ValueError(
                    f"numbers of mediators must be square numbers (1, 4, 9, 16, ... 64), got {number}"
                )
        return value

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of mediators in the order of the schedule."""
        return tuple(number for _, number in self.schedule)


class MediatorsAttention(nn.Module):
    """softmax(q A^T / sqrt(D) + B2) softmax(A k^T / sqrt(D) + B1) v + DWC_3x3(v), A = pool(q) to n(t) tokens.

    [B, N, C] -> [B, N, C]. Images of a batch are grouped by their number of mediators n(t), so that each
    is computed as it would be alone; this reads the timesteps on the host. Timesteps on the meta device
    have no values: every image then takes the largest number. Raises UserInputError without a timestep.
    Source: Attention Mediators arXiv:2408.05710; read in its released code. That code samples from three
    models trained apart, of 4, 16 and 64 mediators say, and goes on to the next once a step changes the
    latents by less than a share of what the first steps did. Here one model holds all numbers, with
    biases for each, and the timestep alone decides, so that the choice exists in training too.
    """

    def __init__(self, site: attnbench.AttentionSite, options: MediatorsOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.conv = DepthwiseConv(site.dim, 3)
        self.gather_bias, self.spread_bias = nn.ModuleDict(), nn.ModuleDict()
        for number in sorted(set(options.numbers)) if options.position_bias else ():
            self.gather_bias[str(number)] = PositionBias(site.num_heads, number, site.grid)
            self.spread_bias[str(number)] = PositionBias(site.num_heads, number, site.grid)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        numbers = self._numbers(x, context)
        q, k, v = self.qkv(x)
        if len(set(numbers)) == 1:  # sampling: all images are at one timestep
            o = self._attend(q, k, v, numbers[0], context.grid)
        else:
            order = sorted(range(len(numbers)), key=numbers.__getitem__)  # stable
            groups = []
            for number in sorted(set(numbers)):
                rows = torch.tensor([i for i in order if numbers[i] == number], device=x.device)
                q_rows, k_rows, v_rows = (z.index_select(0, rows) for z in (q, k, v))
                groups.append(self._attend(q_rows, k_rows, v_rows, number, context.grid))
            back = torch.tensor(order, device=x.device).argsort()
            o = torch.cat(groups).index_select(0, back)
        return self.out(o + self.conv(v, context.grid))

    def _numbers(self, x: torch.Tensor, context: attnbench.AttentionContext) -> list[int]:
        """Return every image's number of mediators."""
        if context.timestep is None:
            raise UserInputError(
                "attention mediators needs context.timestep [B] in [0, 1000) to choose the number of "
                "mediators, got None; pass AttentionContext(timestep=...), or use agent, which has one number"
            )
        if context.timestep.is_meta:
            return [max(self.options.numbers)] * x.shape[0]
        timestep = context.timestep.float()  # bounds need not be representable in an integer or half type
        inner = timestep.new_tensor([bound for bound, _ in self.options.schedule[:-1]])
        places = torch.bucketize(timestep, inner, right=True).tolist()
        numbers = [self.options.numbers[place] for place in places]
        context.record("mediators", torch.tensor(numbers))
        return numbers

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, number: int, grid: tuple[int, int]
    ) -> torch.Tensor:
        mediators = pool_tokens(q, grid, math.isqrt(number))  # [B, n, C]
        gather, spread = self._biases(number)
        return agent_softmax(q, k, v, mediators, self.num_heads, gather_bias=gather, spread_bias=spread)

    def _biases(self, number: int) -> tuple[PositionBias | None, PositionBias | None]:
        if not self.options.position_bias:
            return None, None
        key = str(number)
        return cast("PositionBias", self.gather_bias[key]), cast("PositionBias", self.spread_bias[key])


def supports(
    site: attnbench.AttentionSite, options: MediatorsOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more mediators than tokens: pooling would only repeat tokens."""
    largest = max(options.numbers)
    if largest > site.num_tokens:
        return (
            f"schedule asks for {largest} mediators, more than the {site.num_tokens} tokens of grid "
            f"{site.grid}; choose at most {math.isqrt(site.num_tokens) ** 2}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: MediatorsOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 9 N C for the convolution, 4 n N C for the two attentions.

    n is the schedule's largest number: the cost of the last denoising steps, an upper bound elsewhere.
    """
    n, c = site.num_tokens, site.dim
    return attnbench.MacCount(linear=4 * n * c * c + 9 * n * c, attention=4 * max(options.numbers) * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `mediators`."""
    yield attnbench.AttentionBackend(
        name="mediators",
        summary="agent attention with more agents at later denoising steps",
        family="dynamic",
        source="Attention Mediators arXiv:2408.05710 and its released code",
        options=MediatorsOptions,
        expected_failures={
            "compile": "reads the timesteps on the host to group images by their number of mediators"
        },
        build=MediatorsAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
