"""Attentions that choose tiles: what they are in their limits, what they cost, what they refuse."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.backends.sla import shares
from attnbench.contract import AttentionContext, AttentionSite
from attnbench.models import build_model
from attnbench.models.recipes import resolve
from attnbench.plugins import registry

GRID = (7, 9)  # 6 tiles of side 4, the last ones cut by the border


def of(name, options, grid=GRID):
    return built(name, options, dim=12, num_heads=3, grid=grid)


def run(module, x, grid=GRID, **context):
    return module(x, AttentionContext(grid=grid, **context))


def inputs(grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, grid[0] * grid[1], 12, generator=generator, dtype=torch.float64)


ALL_TILES = {
    "moba": {"top_k": 6},
    "vsa": {"top_k": 6, "gates": "coarse"},  # its gate starts at zero
    "sla": {"critical": 1.0, "negligible": 0.0, "linear": "all"},  # and so does its projection
    "sliding-tile": {"tile_size": 3, "window_tiles": 3},
}


@pytest.mark.parametrize("name", ALL_TILES)
def test_with_all_tiles_it_is_softmax_attention(name):
    """A trained softmax model can be continued from where it is, on a grid that tiles do not divide, too."""
    module, softmax = of(name, ALL_TILES[name]), of("softmax", {})
    softmax.load_state_dict({key: module.state_dict()[key] for key in softmax.state_dict()})
    torch.testing.assert_close(run(module, inputs()), run(softmax, inputs()), rtol=1e-12, atol=1e-12)


def test_a_window_of_single_tokens_is_neighbourhood_attention():
    """Tiles of side 1 slide token by token."""
    module = of("sliding-tile", {"tile_size": 1, "window_tiles": 3})
    window = of("window", {"kernel_size": 3})
    window.load_state_dict(module.state_dict())
    torch.testing.assert_close(run(module, inputs()), run(window, inputs()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own_tile", [True, False])
def test_a_query_keeps_its_own_tile_where_it_must(own_tile):
    """Of two tiles of keys per query, one is its own, or both are those whose means suit it best."""
    seen = {}
    run(of("moba", {"top_k": 2, "own_tile": own_tile}), inputs(), recorder=seen.__setitem__)
    (chosen,) = seen.values()
    tile = torch.tensor([i // 4 * 3 + j // 4 for i in range(7) for j in range(9)])
    assert bool((chosen == tile[:, None]).any(-1).all()) == own_tile


def test_the_coarse_stage_reaches_tokens_that_were_not_chosen():
    """In `vsa` every output depends on every token, by means of tiles; in `moba` on the chosen ones alone."""
    reached, seen = {}, {}
    for name in ("vsa", "moba"):
        x = inputs().requires_grad_()
        options = {"top_k": 1} | ({"own_tile": False} if name == "moba" else {})
        y = run(of(name, options), x, recorder=seen.__setitem__)
        (gradient,) = torch.autograd.grad(y[:, 0].sum(), x)
        reached[name] = gradient[0].abs().sum(-1) > 0
    tile = torch.tensor([i // 4 * 3 + j // 4 for i in range(7) for j in range(9)])
    chosen = torch.isin(tile, seen["blocks.0.chosen_tiles"][0, :, 0])
    chosen[0] = True  # the query itself
    assert reached["vsa"].all()
    assert torch.equal(reached["moba"], chosen)
    assert not chosen.all()


def test_skipped_tiles_reach_nothing():
    """In `sla` the values of critical and marginal tiles count, those of negligible ones do not."""
    module, seen = of("sla", {"critical": 0.2, "negligible": 0.5}), {}
    torch.nn.init.normal_(module.project.weight)
    assert (module.critical, module.negligible) == (2, 3)
    q, k, v = (module.tiling.cut(z.unflatten(2, (3, 4)).transpose(1, 2)) for z in module.qkv(inputs()))
    order = module._rank(q, k)
    v = v.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module._marginal(q, k, v, order).square().sum(), v)
    between = order[..., 2:3]  # the one that is left
    touched = gradient.abs().sum((-2, -1)) > 0  # [B, H, T]
    assert torch.equal(touched, torch.zeros_like(touched).scatter(-1, between.flatten(2), True))
    run(module, inputs(), recorder=seen.__setitem__)
    assert torch.equal(seen["blocks.0.critical_tiles"], order[..., :2].sort(-1).values)


@pytest.mark.parametrize("name", ["vsa", "sla"])
def test_what_starts_at_zero_stays_so_in_a_model(name):
    """The skeleton's initialisation leaves the gate and the projection as they are built."""
    options = {"gates": "coarse", "top_k": 1} if name == "vsa" else {"linear": "all"}
    model = build_model(
        resolve("tiny-dit", {"depth": 1, "attention": {"name": name, "options": options}}), 8, 3
    )
    attention = model.blocks[0].attn
    layer = attention.coarse_gate if name == "vsa" else attention.project
    assert not layer.weight.any()
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moba", {"tile_size": 3, "top_k": 4}),
        ("vsa", {"top_k": 3}),
        ("vsa", {"gates": "coarse", "tile_size": 2}),
        ("sla", {"tile_size": 3, "critical": 0.25}),
        ("sla", {"linear": "all"}),
        ("sliding-tile", {"tile_size": 3}),
    ],
)
@pytest.mark.parametrize("grid", [(7, 9), (12, 12)])
def test_closed_form_is_what_executes(name, options, grid):
    """By both counters to the last multiply-add, with tiles that stick out and without."""
    counts = module_counts(name, options, grid)
    assert len(set(counts)) == 1, counts


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("moba", {"top_k": 7}, "choose 1 to 6, or a smaller tile_size"),
        ("moba", {"top_k": 1}, "nothing is chosen; set top_k to 2 or more, or own_tile: false"),
        (
            "vsa",
            {"top_k": 2, "tile_size": 16},
            "on grid (7, 9), 1; choose 1, or a smaller",
        ),
        ("sla", {"critical": 0.9, "negligible": 0.5}, "shares that sum to 1 at most"),
        ("sla", {"critical": 1.0, "negligible": 0.0}, "linear: all"),
        ("sliding-tile", {"tile_size": 4}, "choose one of [1], or a smaller tile_size"),
    ],
)
def test_what_does_not_fit_the_grid_says_what_does(name, options, reason):
    """Got, allowed and next step, never another choice in silence."""
    backend, site = registry().backend(name), AttentionSite(dim=12, num_heads=3, grid=GRID)
    said = backend.supports(site, backend.options(**options), torch.float32, torch.device("cpu"))
    assert reason in said


@pytest.mark.parametrize("tile_size", [4, 9])
def test_one_tile_that_is_chosen_or_all_there_is_is_supported(tile_size):
    """`moba` with one tile per query needs a choice, or a grid of one tile."""
    backend, site = registry().backend("moba"), AttentionSite(dim=12, num_heads=3, grid=GRID)
    options = backend.options(top_k=1, tile_size=tile_size, own_tile=tile_size == 9)
    assert backend.supports(site, options, torch.float32, torch.device("cpu")) is None


def test_beside_all_tokens_nothing_is_skipped():
    """`sla` with linear: all takes every tile as critical, whatever share is skipped by default."""
    backend, site = registry().backend("sla"), AttentionSite(dim=12, num_heads=3, grid=GRID)
    options = backend.options(critical=1.0, linear="all")
    assert backend.supports(site, options, torch.float32, torch.device("cpu")) is None
    assert shares(6, options) == (6, 0)
    with pytest.raises(ValueError, match=r"negligible: 0\.3 does nothing with linear: all; leave it out"):
        backend.options(negligible=0.3, linear="all")


def test_an_even_window_of_tiles_has_no_middle():
    """The message names the odd numbers beside it."""
    with pytest.raises(ValueError, match="got 4; choose 3 or 5"):
        registry().backend("sliding-tile").options(window_tiles=4)
