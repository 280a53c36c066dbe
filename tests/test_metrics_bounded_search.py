"""Nearest neighbours by float32 products: the bound holds, and what it does not prove is left open."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.evaluation import nearest as module
from attnbench.evaluation.nearest import nearest
from attnbench.metrics import bounded_search
from attnbench.metrics.bounded_search import candidates
from attnbench.metrics.smallest import merge_smallest


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def squared(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared distances in float64, from the differences."""
    return (x[:, None].double() - y.double()).square().sum(dim=2)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 12), n=st.integers(1, 40), width=st.sampled_from([1, 3, 64, 400]),
    kept=st.integers(1, 45), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1e4]),
    spread=st.sampled_from([1.0, 1e-22, 1e3]),
    itself=st.booleans(), double=st.booleans(),
)  # fmt: skip
def test_bounds_lie_below_the_distances(m, n, width, kept, seed, offset, spread, itself, double):
    """Of what is kept and of what is left out, far from the origin, near underflow, with one far image."""
    y = spread * normal(n, width, seed) + offset
    y[0] *= 100
    x = y if itself else spread * normal(m, width, seed + 1) + offset
    if double:
        x = y = y.double()
    exact = squared(x, y)
    found = candidates(x, y, kept)
    assert found.rows.shape == (len(x), min(kept, len(y)))
    assert (found.bounds <= exact.gather(1, found.rows)).all()
    left_out = exact.scatter(1, found.rows, torch.inf)
    assert (left_out.amin(dim=1) >= found.beyond).all()


@pytest.mark.parametrize("itself", [False, True])
def test_the_proof_holds_for_most_rows_and_the_rest_is_searched_again(monkeypatch, itself):
    """The same distances and rows as from float64 alone; equal images by the hundred leave rows open."""
    y = normal(300, 64)
    y[:40] = y[40]  # 41 equal images: more ties than candidates
    x = y if itself else normal(200, 64, seed=1)
    searched = []
    in_double = module._nearest_in_double
    monkeypatch.setattr(
        module, "_nearest_in_double", lambda rows, *rest: searched.append(len(rows)) or in_double(rows, *rest)
    )
    distances, rows = nearest(x, y, 3, leave_one_out=itself)
    tied = (squared(x, y).fill_diagonal_(torch.inf) if itself else squared(x, y)).kthvalue(3).indices < 41
    assert 0 < sum(searched) == int(tied.sum()) < len(x) / 3  # those whose third nearest is one of the 41
    monkeypatch.setattr(module, "float32_is_exact_enough", lambda *sets: False)
    expected = nearest(x, y, 3, leave_one_out=itself)
    assert torch.equal(distances, expected[0])
    assert torch.equal(rows[~tied], expected[1][~tied])


@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e25])
def test_what_float32_cannot_hold_is_not_proved(scale):
    """Squares that vanish or overflow: every row is searched in float64, and found."""
    y = scale * normal(50, 8)
    assert not (candidates(y[:5], y, 4).beyond > 0).any()
    assert nearest(y[:5], y)[1].flatten().tolist() == list(range(5))


def test_products_of_less_than_float32_are_not_used():
    """Where torch is told to multiply in bfloat16 the bound would not hold."""
    x = normal(3, 4)
    assert bounded_search.float32_is_exact_enough(x)
    with torch.autocast("cpu"):
        assert not bounded_search.float32_is_exact_enough(x)
    torch.set_float32_matmul_precision("medium")
    try:
        assert not bounded_search.float32_is_exact_enough(x)
    finally:
        torch.set_float32_matmul_precision("highest")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6), kept=st.integers(1, 9),
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99), whole=st.booleans(),
)  # fmt: skip
def test_merged_blocks_keep_the_smallest(rows, kept, widths, seed, whole):
    """Whatever the blocks, and where many values are equal."""
    values = normal(rows, sum(widths), seed)
    values = values.round() if whole else values
    smallest = torch.full((rows, kept), torch.inf)
    names = torch.zeros(rows, kept, dtype=torch.int64)
    first = 0
    for block in values.split(widths, dim=1):
        merge_smallest(smallest, names, slice(0, rows), first, block)
        first += block.shape[1]
    found, order = smallest.sort(dim=1)
    expected = values.sort(dim=1).values[:, :kept]
    assert torch.equal(found[:, : expected.shape[1]], expected)
    finite = found.isfinite()
    assert torch.equal(values.gather(1, names.gather(1, order))[finite], found[finite])
