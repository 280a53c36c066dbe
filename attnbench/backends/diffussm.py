"""DiffuSSM's gated bidirectional state-space model with its hourglass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, field_validator
from torch import nn

import attnbench
from attnbench.layers.diagonal_ssm import DiagonalStateSpace, diagonal_ssm_macs


class DiffuSSMOptions(attnbench.BackendOptions):
    """Options of `diffussm`."""

    hourglass: PositiveInt = 2
    """Tokens of the state-space model for each token of the layer, M; must divide dim."""
    expand: PositiveInt = 3
    """Width of the gate over dim."""
    state_dim: PositiveInt = 64
    """States of a channel, an even number: half as many complex ones."""
    chunk_size: PositiveInt = 64
    """Tokens of a chunk, a power of two; changes the cost, not the result."""

    @field_validator("chunk_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"chunk_size must be a power of two (16, 32, 64, ...), got {value}")
        return value

    @field_validator("state_dim")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            near = f"{value - 1} or {value + 1}" if value > 1 else "2"
            raise ValueError(
                f"state_dim must be even, got {value}: states come in conjugate pairs; choose {near}"
            )
        return value


class DiffuSSMAttention(nn.Module):
    """DiffuSSM's block in the attention's place, [B, N, C] -> [B, N, C].

    Every token I_j becomes M tokens U_{jM + k} = s(W_up,k s(W_0 I_j)), one set for each direction; a diagonal
    state-space model runs over each set of M N tokens, the second one backwards, and the two outputs Y are
    added; I'_j = [s(W_down,k Y_{jM + k})]_k and O_j = W_3 (s(W_2 I'_j) * s(W_1 I_j)), s a GELU. W_1 and W_2
    are expand C wide, W_down,k C / M. So dense layers cost 7.5 L C^2 at M = 2 for the L = M N tokens that the
    state-space model sees, the paper's count.

    What was read: no code of DiffuSSM is public, and of the paper only its beginning and a public summary
    with these equations, its S4D, its M = 2 and its 7.5 L C^2. Not in there, and chosen here: widths, which
    with an own up-projection for each direction give just that count; GELU and widths of 3 C from BiGS
    (arXiv:2212.10544, same authors), whose gated bidirectional layer the paper builds on; directions that are
    added, as in S4's code (BiGS multiplies). The paper keeps labels and times in every position as DiT does:
    here the skeleton's AdaLN. The block replaces attention and feed-forward there; here the skeleton keeps
    its feed-forward. Linear layers but W_down start as DiT's, the state-space model as S4D's.
    Source: DiffuSSM arXiv:2311.18257 as said; S4D arXiv:2206.11893 and BiGS, released code of both read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: DiffuSSMOptions) -> None:
        super().__init__()
        dim, self.hourglass = site.dim, options.hourglass
        hidden = options.expand * dim
        self.narrow = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, options.hourglass * 2 * dim)
        self.ssm = DiagonalStateSpace(2 * dim, options.state_dim, options.chunk_size)
        self.down = nn.Conv1d(options.hourglass * dim, dim, 1, groups=options.hourglass)
        self.mix = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        tokens, dim = x.shape[1:]
        long = F.gelu(self.up(F.gelu(self.narrow(x)))).view(-1, tokens * self.hourglass, 2 * dim)
        ahead, back = long.split(dim, -1)
        ahead, back = self.ssm(torch.cat((ahead, back.flip(1)), -1)).split(dim, -1)
        y = (ahead + back.flip(1)).reshape(-1, tokens, self.hourglass * dim)
        short = F.gelu(self.down(y.transpose(1, 2))).transpose(1, 2)
        return self.out(F.gelu(self.mix(short)) * F.gelu(self.gate(x)))


def supports(
    site: attnbench.AttentionSite, options: DiffuSSMOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse widths that the hourglass does not divide."""
    if site.dim % options.hourglass:
        divisors = [m for m in range(1, site.dim + 1) if site.dim % m == 0]
        return (
            f"hourglass {options.hourglass} must divide dim {site.dim}, of which each of its tokens gives a "
            f"part back; choose one of {divisors}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: DiffuSSMOptions) -> attnbench.MacCount:
    """N C^2 (2 + 2 M + 3 expand) for the dense layers, and the matmuls of both ways over M N tokens."""
    n, c, m = site.num_tokens, site.dim, options.hourglass
    return attnbench.MacCount(
        linear=n * c * c * (2 + 2 * m + 3 * options.expand),
        attention=diagonal_ssm_macs(m * n, 2 * c, options.state_dim, options.chunk_size),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `diffussm`."""
    yield attnbench.AttentionBackend(
        name="diffussm",
        summary="DiffuSSM's gated bidirectional S4D, over M tokens for each one",
        source="DiffuSSM arXiv:2311.18257 (from a summary); S4D and BiGS released code",
        options=DiffuSSMOptions,
        build=DiffuSSMAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        family="sequential",
    )
