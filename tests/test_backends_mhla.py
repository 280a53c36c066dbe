"""Multi-head linear attention: its blocks, where their mixture begins, what it refuses, and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.layers import (
    from_blocks,
    linear_attention,
    merge_heads,
    nearness,
    split_heads,
    to_blocks,
)
from attnbench.plugins import registry

BACKEND = registry().backend("mhla")
GRID = (7, 9)


def test_blocks_hold_the_tokens_of_their_square_and_give_them_back():
    """On 7 x 9 in 4 x 4 blocks of 2 x 3: the second block of the second row has (2, 3) to (3, 5)."""
    tokens = torch.arange(63.0)[None, :, None].expand(1, 63, 2)
    parts = to_blocks(tokens, GRID, 4, 1)
    assert parts.shape == (1, 1, 16, 6, 2)
    assert parts[0, 0, 5, :, 0].tolist() == [21, 22, 23, 30, 31, 32]
    assert parts[0, 0, 12, :, 0].tolist() == [54, 55, 56, 0, 0, 0]  # the last row has no row below
    assert torch.equal(from_blocks(parts, GRID, 4), tokens)


def test_the_mixture_begins_near():
    """Rows of sum 1, the block itself foremost, the farthest one nothing."""
    near = nearness(3)
    torch.testing.assert_close(near.sum(1), torch.ones(9))
    assert torch.equal(near.argmax(1), torch.arange(9))
    # from a corner the distances are 0, 1, 2, ...: the largest 2 sqrt 2, so 1 - 1 / sqrt 8 for the next
    assert near[0, 1] / near[0, 0] == pytest.approx(1 - 8**-0.5)
    assert near[0, 8] == 0
    assert nearness(1).tolist() == [[1.0]]


def test_an_even_mixture_is_linear_attention():
    """Where all coefficients are 1, the state of every block is that of all tokens."""
    module = built("mhla", {"lepe": False}, dim=12, num_heads=3, grid=GRID)
    module.mixing.data.fill_(1.0)
    x = torch.randn(2, 63, 12, dtype=torch.float64)
    q, k, v = (split_heads(z, 3) for z in module.qkv(x))
    plain = linear_attention(q.relu() + 1e-6, k.relu() + 1e-6, v, eps=module.options.eps)
    torch.testing.assert_close(module(x, AttentionContext(grid=GRID)), module.out(merge_heads(plain)))


def test_more_blocks_than_tokens_a_side_are_refused():
    """The reason names the largest number that fits."""
    site = AttentionSite(dim=12, num_heads=3, grid=(3, 6))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "choose at most 3" in reason
    assert BACKEND.supports(site, BACKEND.options(blocks=3), torch.float32, torch.device("cpu")) is None


@pytest.mark.parametrize("grid", [(7, 9), (9, 7), (5, 5)])
def test_blocks_without_a_token_are_refused(grid):
    """Exactly the listed numbers leave no block empty: a block without a token would mix nothing."""
    site = AttentionSite(dim=12, num_heads=3, grid=grid)

    def refusal(blocks):
        return BACKEND.supports(site, BACKEND.options(blocks=blocks), torch.float32, torch.device("cpu"))

    assert f"blocks=4 leave blocks of grid {grid} without a token; choose one of " in refusal(4)
    for number in range(1, min(grid) + 1):
        filled = to_blocks(torch.ones(1, grid[0] * grid[1], 1), grid, number, 1).sum((3, 4)).bool().all()
        assert (refusal(number) is None) == bool(filled)
        assert (f"{number}" in refusal(4).partition("one of")[2]) == bool(filled)


@pytest.mark.parametrize("options", [{"blocks": 2}, {"blocks": 3, "lepe": False}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add, on blocks that are cut short."""
    counts = module_counts("mhla", options)
    assert len(set(counts)) == 1, counts
