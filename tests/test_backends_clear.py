"""CLEAR's circle, its implementations, its averaged tokens and what each of them costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts
from references.clear import reference

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.layers import disc_neighbours, disc_size
from attnbench.plugins import registry

BACKEND = registry().backend("clear")
GRID = (4, 6)


def run(module, x, grid=GRID):
    return module(x, AttentionContext(grid=grid))


def same_weights(options, grid=GRID, name="clear"):
    return built(name, options, dim=12, num_heads=3, grid=grid)


@pytest.mark.parametrize("implementation", ["gather", "mask"])
def test_averaged_tokens_match_the_reference(implementation):
    """With cells of the grid beside the circle, outputs and gradients are the reference's."""
    options = {"radius": 2, "down_factor": 2, "implementation": implementation}
    module = same_weights(options)
    torch.nn.init.normal_(module.cell_weight)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    found = []
    for y in (run(module, x), reference(module, x, AttentionContext(grid=GRID))):
        found.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    for ours, theirs in zip(*found, strict=True):  # a few hundred float64 terms in another order
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("radius", [2, 5, 8])
@pytest.mark.parametrize("grid", [(4, 6), (13, 18)])
def test_tiles_and_mask_give_what_gather_gives(radius, grid):
    """The implementations differ by rounding only, where tiles stick out of the grid, too."""
    x = torch.randn(1, grid[0] * grid[1], 12, dtype=torch.float64)
    kinds = ("gather", "tiles", "mask")
    gather, *others = (
        run(same_weights({"radius": radius, "implementation": kind}, grid), x, grid) for kind in kinds
    )
    for other in others:
        torch.testing.assert_close(gather, other, rtol=1e-12, atol=1e-12)


def test_a_circle_around_the_whole_grid_is_softmax_attention():
    """Every token sees all tokens."""
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    local, whole = same_weights({"radius": 9}), same_weights({}, name="softmax")
    whole.load_state_dict(local.state_dict())
    torch.testing.assert_close(run(local, x), run(whole, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("grid", "radius"), [((7, 9), 4), ((4, 4), 3), ((1, 8), 3), ((5, 6), 20)])
def test_circles_hold_the_tokens_nearer_than_the_radius(grid, radius):
    """Each once, none else, and no more places than the fullest circle needs."""
    index, inside = disc_neighbours(grid, radius)
    tokens = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    for query, keys, valid in zip(tokens, index, inside, strict=True):
        distances = [((query[0] - y) ** 2 + (query[1] - x) ** 2) ** 0.5 for y, x in tokens]
        near = [number for number, distance in enumerate(distances) if distance < radius]
        assert sorted(keys[valid].tolist()) == near
    assert index.shape[1] == inside.sum(1).max() == disc_size(grid, radius)


@pytest.mark.parametrize(
    ("implementation", "down_factor"), [("gather", 1), ("tiles", 1), ("mask", 1), ("gather", 2), ("mask", 2)]
)
@pytest.mark.parametrize("grid", [(6, 8), (22, 30)])
def test_closed_form_is_what_executes(implementation, down_factor, grid):
    """Each implementation's multiply-adds, by both counters."""
    options = {"radius": 6, "implementation": implementation, "down_factor": down_factor}
    counts = module_counts("clear", options, grid)
    assert len(set(counts)) == 1, counts


@pytest.mark.parametrize(
    ("grid", "options", "reason"),
    [
        ((6, 12), {"down_factor": 4}, "one of [2, 3, 6], or 1"),
        ((7, 9), {"down_factor": 4}, "choose 1, which is without"),
        ((6, 12), {"down_factor": 2, "implementation": "tiles"}, "choose gather or mask"),
    ],
)
def test_cells_that_do_not_fit_say_what_does(grid, options, reason):
    """A reason with what is allowed, and the grid's own divisors."""
    site = AttentionSite(dim=12, num_heads=3, grid=grid)
    assert reason in BACKEND.supports(site, BACKEND.options(**options), torch.float32, torch.device("cpu"))
