"""S4D: a linear time-invariant state-space model with complex diagonal states, channel by channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import chunk_layout
from attnbench.layers.precision import without_autocast
from attnbench.layers.state_space_init import STEP_RANGE


class DiagonalStateSpace(nn.Module):
    """y_t = 2 Re(c h_t) + D x_t with h_t = exp(d a) h_{t-1} + b x_t, b = (exp(d a) - 1) / a; x [B, N, E].

    Every channel has S / 2 complex states with Re a < 0, a step d and reading weights c of its own. That is a
    convolution of each channel with a kernel of length N; instead of an FFT over N, chunks of C tokens
    meet the kernel's first C taps as a Toeplitz matrix, and states carry the rest: O(N C + N S) per channel,
    all in matmuls over images and chunks. At least fp32, under autocast too.

    Numerics: powers of exp(d a) come from squares of it made in float64, log2(C) factors each, so that a
    phase d Im(a) t of hundreds of radians keeps its digits; every modulus is below 1.
    Initialisation as in the released code: Re a = -1/2, Im a = pi n, c normal, d log-uniform in
    [0.001, 0.1], D normal.
    Source: S4D arXiv:2206.11893; models/s4/s4d.py of its released code read.
    """

    def __init__(self, channels: int, state_dim: int, chunk_size: int) -> None:
        super().__init__()
        if chunk_size < 1 or chunk_size & (chunk_size - 1):
            raise UserInputError(f"chunk_size must be a power of two (16, 32, 64, ...), got {chunk_size}")
        half, self.chunk_size = state_dim // 2, chunk_size
        low, high = (math.log(end) for end in STEP_RANGE)
        self.log_step = nn.Parameter(torch.rand(channels) * (high - low) + low)
        self.log_decay = nn.Parameter(torch.full((channels, half), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(half, dtype=torch.float32).repeat(channels, 1))
        self.reading = nn.Parameter(torch.randn(channels, half, 2) * 0.5**0.5)  # real and imaginary part
        self.skip = nn.Parameter(torch.randn(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, E] -> [B, N, E], causal in N."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            out = self._convolve(x.to(dtype)) + x.to(dtype) * self.skip.to(dtype)
        return out.to(x.dtype)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, channels = x.shape
        chunks, size = chunk_layout(tokens, self.chunk_size)
        factor, weight = self._factor_and_weight()
        powers, whole = powers_of(factor, size, x.dtype)  # [2, E, S/2, C], [2, E, S/2]
        re, im = weight.to(x.dtype)
        kernel = 2 * (re[..., None] * powers[0] - im[..., None] * powers[1]).sum(1)  # [E, C]
        x = F.pad(x, (0, 0, 0, chunks * size - tokens))
        by_channel = x.view(batch * chunks, size, channels).permute(2, 1, 0)  # [E, C, B T]
        out = toeplitz(kernel) @ by_channel
        if chunks > 1:
            write = torch.cat(tuple(powers.flip(-1)), 1)  # [E, S, C]
            written = (write @ by_channel).view(channels, 2, -1, batch, chunks)
            before = _complex_states_before(written, whole.to(x.dtype)[..., None])
            first = complex_product((re, im), factor.to(x.dtype).unbind(0))  # of a token after the border
            read_re, read_im = complex_product(powers.unbind(0), (first[0][..., None], first[1][..., None]))
            read = 2 * torch.cat((read_re, -read_im), 1)  # [E, S, C]
            out = out + read.transpose(1, 2) @ before.reshape(channels, -1, batch * chunks)
        return out.permute(2, 1, 0).reshape(batch, chunks * size, channels)[:, :tokens]

    def _factor_and_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """exp(d a) and c (exp(d a) - 1) / a, each [2, E, S/2] in float64: real and imaginary part."""
        step = self.log_step.double().exp()[:, None]
        a_re, a_im = -self.log_decay.double().exp(), self.frequency.double()
        radius, angle = (step * a_re).exp(), step * a_im
        factor = torch.stack((radius * angle.cos(), radius * angle.sin()))
        squared = a_re.square() + a_im.square()
        over_a = complex_product((factor[0] - 1, factor[1]), (a_re / squared, -a_im / squared))
        reading = self.reading.double().unbind(-1)
        return factor, torch.stack(complex_product(reading, over_a))


Complex = tuple[torch.Tensor, ...]


def complex_product(x: Complex, y: Complex) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply numbers given as real and imaginary part."""
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def powers_of(factor: torch.Tensor, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers 0 ... size - 1 of complex numbers [2, ...]: [2, ..., size] in `dtype`, and power `size` itself.

    The squares stay in the factor's type; `size` is a power of two.
    """
    re, im = (
        torch.ones_like(factor[0], dtype=dtype)[..., None],
        torch.zeros_like(factor[0], dtype=dtype)[..., None],
    )
    while re.shape[-1] < size:
        square = (factor[0].to(dtype)[..., None], factor[1].to(dtype)[..., None])
        higher = complex_product((re, im), square)
        re, im = torch.cat((re, higher[0]), -1), torch.cat((im, higher[1]), -1)
        factor = torch.stack(complex_product(factor.unbind(0), factor.unbind(0)))
    return torch.stack((re, im)), factor


def toeplitz(kernel: torch.Tensor) -> torch.Tensor:
    """Lower triangular Toeplitz matrices [E, C, C] with entry (t, s) = kernel [E, C] at t - s.

    Rows are cut from copies of one line of 2 C numbers with 2 C - 1 to a row, so that each is the last one
    moved by a place: no index, whose gradient would be added up in any order.
    """
    size = kernel.shape[-1]
    line = torch.cat((kernel[:, :1], torch.zeros_like(kernel), kernel[:, 1:].flip(-1)), -1)
    rows = line[:, None].expand(-1, size, -1).reshape(len(kernel), -1)[:, : size * (2 * size - 1)]
    return rows.view(-1, size, 2 * size - 1)[..., :size]


def diagonal_ssm_macs(num_tokens: int, channels: int, state_dim: int, chunk_size: int) -> int:
    """Multiply-adds of the matmuls of one sequence, as executed, padded tokens included.

    >>> diagonal_ssm_macs(64, 10, 16, 64), diagonal_ssm_macs(100, 10, 16, 64)
    (40960, 122880)
    """
    chunks, size = chunk_layout(num_tokens, chunk_size)
    across = 2 * state_dim if chunks > 1 else 0
    return channels * chunks * size * (size + across)


def _complex_states_before(written: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """States at the start of every chunk, [E, 2, S/2, B, T] like `written`; whole [2, E, S/2, 1] by chunk."""
    state = (torch.zeros_like(written[:, 0, ..., 0]), torch.zeros_like(written[:, 0, ..., 0]))
    states = [torch.stack(state, 1)]
    for new in written.unbind(-1)[:-1]:
        kept = complex_product(whole.unbind(0), state)
        state = (kept[0] + new[:, 0], kept[1] + new[:, 1])
        states.append(torch.stack(state, 1))
    return torch.stack(states, -1)
