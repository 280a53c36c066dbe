"""Neighbourhood attention: its window, its implementations and what each of them costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.backends import window
from attnbench.contract import AttentionContext, AttentionSite
from attnbench.layers.neighbourhood import computed_blocks, neighbours
from attnbench.plugins import registry

BACKEND = registry().backend("window")
GRID = (7, 9)


def run(module, x, grid=GRID):
    with torch.no_grad():
        return module(x, AttentionContext(grid=grid))


def same_weights(options, grid=GRID):
    return built("window", options, dim=12, num_heads=3, grid=grid)


def test_mask_gives_what_gather_gives():
    """The two implementations differ by rounding only, odd and even windows alike."""
    x = torch.randn(2, 63, 12, dtype=torch.float64)
    for size in (2, 5, 6, 7):
        gather = same_weights({"kernel_size": size})
        mask = same_weights({"kernel_size": size, "implementation": "mask"})
        torch.testing.assert_close(run(gather, x), run(mask, x), rtol=1e-12, atol=1e-12)


def test_flex_gives_what_gather_gives(monkeypatch):
    """flex_attention's mask is the same window (run here uncompiled, which computes all scores)."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(window, "_compiled_flex_attention", lambda: flex_attention)
    x = torch.randn(2, 63, 12)
    gather = same_weights({"kernel_size": 3}).float()
    flex = same_weights({"kernel_size": 3, "implementation": "flex"}).float()
    torch.testing.assert_close(run(gather, x), run(flex, x))


def test_a_window_as_large_as_the_grid_is_softmax_attention():
    """With k x k = N every token sees all tokens."""
    site = {"dim": 12, "num_heads": 3, "grid": (5, 5)}
    x = torch.randn(2, 25, 12, dtype=torch.float64)
    local = built("window", {"kernel_size": 5}, **site)
    whole = built("softmax", **site)
    whole.load_state_dict(local.state_dict())
    torch.testing.assert_close(run(local, x, (5, 5)), run(whole, x, (5, 5)), rtol=1e-12, atol=1e-12)


def test_the_interior_moves_with_the_image():
    """Shifting the input by one row and two columns shifts the output where no border is near."""
    image = torch.randn(1, 9, 11, 12, dtype=torch.float64)
    module = same_weights({"kernel_size": 3}, grid=(7, 9))
    here = run(module, image[:, :7, :9].flatten(1, 2)).unflatten(1, (7, 9))
    there = run(module, image[:, 1:8, 2:].flatten(1, 2)).unflatten(1, (7, 9))
    torch.testing.assert_close(here[:, 2:6, 3:8], there[:, 1:5, 1:6], rtol=1e-12, atol=1e-12)


def test_windows_shift_inwards_and_never_wrap():
    """Every token has k^2 distinct keys, all within k - 1 rows and columns of it."""
    index = neighbours(GRID, 4)
    assert index.shape == (63, 16)
    assert all(len(set(keys)) == 16 for keys in index.tolist())
    token = torch.arange(63)[:, None]
    assert ((index // 9 - token // 9).abs() < 4).all()
    assert ((index % 9 - token % 9).abs() < 4).all()
    assert index[0].tolist() == [r * 9 + c for r in range(4) for c in range(4)]


@pytest.mark.parametrize("implementation", ["gather", "mask", "flex", "natten"])
@pytest.mark.parametrize("grid", [(7, 9), (14, 20)])
def test_closed_form_is_what_executes(implementation, grid):
    """Each implementation's multiply-adds, by both counters (flex and natten: their matmuls on paper)."""
    counts = module_counts("window", {"implementation": implementation, "kernel_size": 5}, grid)
    assert len(set(counts)) == 1, counts


@pytest.mark.parametrize(("grid", "size"), [((14, 20), 5), ((24, 24), 7), ((7, 9), 3)])
def test_computed_blocks_are_those_of_flex_attention(grid, size):
    """Our count of non-empty 128 x 128 blocks is that of torch's own block mask."""
    mask = window._block_mask(grid, size, torch.device("cpu"))
    full = 0 if mask.full_kv_num_blocks is None else int(mask.full_kv_num_blocks.sum())
    assert computed_blocks(grid, size, 128) == int(mask.kv_num_blocks.sum()) + full


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kernel_size": 8}, "choose 2 to 7"),
        ({"kernel_size": 3, "implementation": "flex"}, "use implementation: gather"),
    ],
)
def test_what_cannot_run_says_why(options, reason):
    """A window beyond the grid and a missing kernel are reasons, never another implementation."""
    site = AttentionSite(dim=12, num_heads=3, grid=GRID)
    said = BACKEND.supports(site, BACKEND.options(**options), torch.float32, torch.device("cpu"))
    assert reason in said


def test_natten_says_why_it_cannot_run():
    """On the CPU natten is refused, for its absence or for the device."""
    options = BACKEND.options(kernel_size=3, implementation="natten")
    site = AttentionSite(dim=12, num_heads=3, grid=GRID)
    assert "natten" in BACKEND.supports(site, options, torch.float32, torch.device("cpu"))
