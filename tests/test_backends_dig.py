"""DiG: scan directions against the reordered stream, both forms, counts of the published sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from references.dig import reference, stream_order

from attnbench.backends.dig import INIT_GAIN, DigAttention, DigOptions, macs, scan_order, supports
from attnbench.contract import AttentionContext, AttentionSite
from attnbench.layers.depthwise import on_grid
from attnbench.models import build_model
from attnbench.models.recipes import load_recipes
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.specs import AttentionSpec

SIZES = {"S": (384, 15, 1024), "B": (512, 14, 1536), "L": (768, 15, 2048)}  # width, blocks, SwiGLU hidden


def layer(layer_idx, grid, **options):
    """A float64 module with gates spread over fast and slow forgetting."""
    torch.manual_seed(layer_idx)
    site = AttentionSite(dim=12, num_heads=3, grid=grid, layer_idx=layer_idx, depth=8)
    module = DigAttention(site, DigOptions(gate_normaliser=2.0, **options)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("layer_idx", range(8))
def test_every_layer_scans_in_the_order_of_the_stream(layer_idx, grid):
    """Eight layers see the tokens as the released stream brings them, on oblong grids too."""
    module = layer(layer_idx, grid)
    x = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64)
    context = AttentionContext(grid=grid)
    torch.testing.assert_close(module(x, context), reference(module, x, context, layer_idx))


def test_the_four_directions_differ_and_repeat():
    """Four layers scan in four different orders, and the fifth begins again."""
    orders = [tuple(stream_order(i, (4, 4)).tolist()) for i in range(8)]
    assert len(set(orders[:4])) == 4
    assert orders[:4] == orders[4:]
    assert [scan_order(i) for i in range(4)] == [scan_order(i) for i in range(4, 8)]


def test_restoring_the_order_is_the_released_model():
    """Eight residual layers and stream convolutions on a reordered stream equal ours, taps mirrored alike."""
    grid, height = (4, 4), 4
    context = AttentionContext(grid=grid)
    x = torch.randn(2, 16, 12, dtype=torch.float64)
    stream = x
    for i in range(8):
        kernel = torch.randn(12, 1, 3, 3, dtype=torch.float64)
        ours, theirs = layer(i, grid), layer(i, grid, scan="row-major")
        column_major, reverse = scan_order(i)
        mirrored = kernel.flip(2, 3) if reverse else kernel
        mirrored = mirrored.transpose(2, 3) if column_major else mirrored
        x = convolve(x + ours(x, context), mirrored, grid)
        stream = convolve(stream + theirs(stream, context), kernel, grid)
        stream = stream.flip(1)
        if i % 2 == 1:
            stream = stream.reshape(2, height, height, 12).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(x, stream)


def convolve(x, kernel, grid):
    return on_grid(lambda image: F.conv2d(image, kernel, padding=1, groups=12), x, grid, 12)


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (8, 8)])
def test_chunked_equals_recurrent(grid):
    """The two forms of one module differ by rounding only, for one token, padding and whole chunks."""
    chunked, recurrent = layer(3, grid, chunk_size=8), layer(3, grid, form="recurrent")
    x = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64)
    context = AttentionContext(grid=grid)
    torch.testing.assert_close(chunked(x, context), recurrent(x, context))


def test_a_rejected_gate_width_is_explained():
    """Key widths the heads do not divide are refused with the width, the heads and what would do."""
    site = AttentionSite(dim=12, num_heads=4, grid=(4, 4))
    reason = supports(site, DigOptions(), torch.float32, torch.device("cpu"))
    assert all(part in reason for part in ("num_heads=4", "key width 6", "0.333333"))
    assert supports(site, DigOptions(expand_k=1.0), torch.float32, torch.device("cpu")) is None
    with pytest.raises(ValidationError, match="power of two"):
        DigOptions(chunk_size=48)
    with pytest.raises(ValidationError, match="chunk_size: 16 does nothing with form: recurrent"):
        DigOptions(form="recurrent", chunk_size=16)


def test_the_released_initialisation_survives_the_skeleton():
    """A model's DiG projections are Xavier-uniform with gain 2^-2.5, not DiT's gain 1."""
    config = load_recipes()["tiny-dit"].model_copy(
        update={"attention": AttentionSpec(name="dig"), "depth": 1}
    )
    attention = build_model(config, 8, 10).blocks[0].attn
    for projection in (attention.q, attention.v, attention.out):
        limit = INIT_GAIN * (6 / sum(projection.weight.shape)) ** 0.5
        assert 0.9 * limit < projection.weight.abs().max() <= limit
    assert not attention.forget[1].bias.any()


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize("grid", [(2, 3), (7, 9), (8, 8)])
def test_counts_are_what_executes(form, grid):
    """Closed form and both counters agree to the last multiply-add, padded chunks included."""
    options = DigOptions(form=form, **({"chunk_size": 16} if form == "chunked" else {}))
    site = AttentionSite(dim=24, num_heads=3, grid=grid, layer_idx=2)
    with torch.device("meta"):
        module = Alone(DigAttention(site, options), grid)
        x = torch.empty(1, grid[0] * grid[1], 24)
    want = macs(site, options).full
    assert (count_with_torch(module, [x]).macs, count_with_fvcore(module, [x]).macs) == (want, want)


class Alone(torch.nn.Module):
    """Attention without a skeleton, for the counters."""

    def __init__(self, attention, grid):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, x):
        return self.attention(x, AttentionContext(grid=self.grid))


@pytest.mark.parametrize(
    ("size", "side", "paper", "full"),
    [
        ("S", 16, 5.9243, 6.956),
        ("B", 16, 10.4322, 12.421),
        ("L", 16, 23.5782, 27.530),
        ("L", 32, 94.1477, 109.953),
    ],
)
def test_published_sizes(size, side, paper, full):
    """DiG-S/B/L give the printed GFLOPs: one-head state, no RMSNorm, no SwiGLU down-projection, no bias.

    What is not attention is counted here by hand: patch and final layer, time MLP, AdaLN, LayerNorms at 2 an
    element, SwiGLU and the 3x3 depthwise convolution of the stream.
    """
    d, blocks, hidden = SIZES[size]
    n = side * side
    site = AttentionSite(dim=d, num_heads=d // 64, grid=(side, side))
    attention = macs(site, DigOptions(form="recurrent"))
    shell = n * d * 16 + 256 * d + d * d + 2 * d * d + n * d * 32
    block = 6 * d * d + 9 * n * d + n * d * 2 * hidden
    norms = 2 * n * d + blocks * 2 * 2 * n * d
    as_printed = shell + norms + blocks * (block + attention.paper)
    executed = shell + blocks * (block + n * hidden * d + attention.full)
    assert round(as_printed / 1e9, 4) == paper
    assert round(executed / 1e9, 3) == full
