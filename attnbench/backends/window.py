"""Neighbourhood attention: each token's softmax runs over the k x k tokens around it on the grid."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, computed_blocks, merge_heads, near, neighbours, split_heads

FLEX_BLOCK = 128  # flex_attention skips or computes blocks of 128 x 128 query-key pairs


class WindowOptions(attnbench.BackendOptions):
    """Options of `window`."""

    kernel_size: int = Field(default=7, ge=2)
    """Side k of the neighbourhood, at most the grid's shorter side (the paper: 7)."""
    implementation: Literal["gather", "mask", "flex", "natten"] = "gather"
    """`gather`: copies each token's k x k keys and values, N k^2 work and memory on any device;
    `mask`: torch's fused softmax attention under a mask, N^2 work; `flex`: flex_attention, which skips
    empty 128 x 128 blocks (GPU); `natten`: the authors' kernels (GPU)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""


class WindowAttention(nn.Module):
    """o_i = sum_(j in rho(i)) softmax_j(q_i . k_j / sqrt(D)) v_j, rho(i) the k x k tokens around i.

    Where the window would leave the grid it is shifted inwards, so that every token has k^2 keys;
    an even k reaches one token further up and left. No relative position bias (the paper has one,
    later NATTEN kernels do not). [B, N, C] -> [B, N, C]; the softmax in the input's dtype.
    Source: Neighborhood Attention arXiv:2204.07143, eq. 1-3; window placement read in NATTEN's code.
    """

    neighbours: torch.Tensor

    def __init__(self, site: attnbench.AttentionSite, options: WindowOptions) -> None:
        super().__init__()
        self.num_heads, self.grid, self.options = site.num_heads, site.grid, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        if options.implementation == "gather":
            index = neighbours(site.grid, options.kernel_size)
            self.register_buffer("neighbours", index, persistent=False)  # [N, k^2]

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        return self.out(merge_heads(self._attend(q, k, v)))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grid, size = self.grid, self.options.kernel_size
        match self.options.implementation:
            case "gather":
                return gathered_attention(q, k, v, self.neighbours)
            case "mask":
                token = torch.arange(grid[0] * grid[1], device=q.device)
                mask = near(grid, size, token[:, None], token[None, :])  # [N, N]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            case "flex":
                return flex_window_attention(q, k, v, grid, size)
            case "natten":
                return natten_attention(q, k, v, grid, size)


def gathered_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """Softmax attention of every query on its own keys: q, k, v [B, H, N, D], index [N, K]."""
    k_near, v_near = (z.index_select(2, index.flatten()).unflatten(2, index.shape) for z in (k, v))
    scores = (q * q.shape[-1] ** -0.5).unsqueeze(-2) @ k_near.transpose(-2, -1)  # [B, H, N, 1, K]
    return (scores.softmax(-1) @ v_near).squeeze(-2)


def flex_window_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int], kernel_size: int
) -> torch.Tensor:
    """Neighbourhood attention through torch's flex_attention: [B, H, N, D]."""
    if q.is_meta:
        return _flex_on_paper(q, grid, kernel_size)
    return _compiled_flex_attention()(q, k, v, block_mask=_block_mask(grid, kernel_size, q.device))


def _flex_on_paper(q: torch.Tensor, grid: tuple[int, int], kernel_size: int) -> torch.Tensor:
    """Do the matmuls of the computed blocks on nothing: flex_attention refuses the meta device."""
    blocks = computed_blocks(grid, kernel_size, FLEX_BLOCK)
    block = q.new_empty(*q.shape[:2], blocks, FLEX_BLOCK, q.shape[-1])
    return ((block @ block.transpose(-2, -1)) @ block).flatten(2, 3)[:, :, : q.shape[2]]


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@functools.cache
def _block_mask(grid: tuple[int, int], kernel_size: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def in_window(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return near(grid, kernel_size, query, key)

    tokens = grid[0] * grid[1]
    with torch.inference_mode(False):  # a cached mask made there could not be saved for a backward pass
        return create_block_mask(in_window, None, None, tokens, tokens, device=device, BLOCK_SIZE=FLEX_BLOCK)


def natten_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int], kernel_size: int
) -> torch.Tensor:
    """Neighbourhood attention through NATTEN's na2d, which wants [B, height, width, H, D]."""
    if q.is_meta:  # where only multiply-adds are counted: those of the pairs in a window
        return gathered_attention(q, k, v, neighbours(grid, kernel_size, q.device))
    na2d = importlib.import_module("natten").na2d
    on_grid = (z.transpose(1, 2).unflatten(1, grid).contiguous() for z in (q, k, v))
    return na2d(*on_grid, kernel_size=kernel_size).flatten(1, 2).transpose(1, 2)


def supports(
    site: attnbench.AttentionSite, options: WindowOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse windows larger than the grid, and implementations that this machine lacks."""
    if options.kernel_size > min(site.grid):
        return (
            f"kernel_size={options.kernel_size} exceeds the shorter side of grid {site.grid}; "
            f"choose {f'2 to {min(site.grid)}' if min(site.grid) > 1 else 'a grid of at least 2 x 2'}"
        )
    if options.implementation == "natten":
        return _why_no_natten(device)
    if options.implementation == "flex":
        return _why_no_flex(device)
    return None


def _why_no_flex(device: torch.device) -> str | None:
    if device.type == "meta":
        return None
    if device.type != "cuda":
        return (
            f"flex_attention computes all N x N scores unless compiled, and compiled it has no backward pass "
            f"on {device.type}; use implementation: gather"
        )
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton for flex_attention on a GPU; pip install triton"
    return None


def _why_no_natten(device: torch.device) -> str | None:
    try:
        importlib.import_module("natten")
    except Exception as error:  # noqa: BLE001 - a binary built for another torch fails in many ways
        return (
            f"natten does not import ({type(error).__name__}: {error}); install the build of natten for "
            "this torch and CUDA, or use implementation: gather"
        )
    if device.type not in ("cuda", "meta"):
        return f"natten's kernels need a CUDA device, got {device.type}; use implementation: gather"
    return None


def macs(site: attnbench.AttentionSite, options: WindowOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections; 2 C for each query-key pair that the implementation computes.

    Pairs: N k^2 for `gather` and (useful pairs only: its tiles compute some more) `natten`, N^2 for
    `mask`, 128^2 a non-empty block for `flex`. A window's own N k^2 is the cheaper order of all.
    """
    n, c = site.num_tokens, site.dim
    window = n * options.kernel_size**2
    match options.implementation:
        case "mask":
            pairs = n * n
        case "flex":
            pairs = computed_blocks(site.grid, options.kernel_size, FLEX_BLOCK) * FLEX_BLOCK**2
        case _:
            pairs = window
    return attnbench.MacCount(linear=4 * n * c * c, attention=2 * pairs * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `window`."""
    yield attnbench.AttentionBackend(
        name="window",
        summary="neighbourhood attention: softmax over the k x k tokens around each token",
        family="sparse",
        source="Neighborhood Attention Transformer arXiv:2204.07143, eq. 1-3",
        options=WindowOptions,
        build=WindowAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        symmetry="translation",
    )
