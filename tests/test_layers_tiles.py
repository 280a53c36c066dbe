"""Tiles of a grid: cutting and joining, means, choices that ties and batches do not move, attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attnbench.layers import Tiling, choose, grouped_attention, largest_tiles, ranked_tiles
from attnbench.layers.grouped_tiles import group_by_tile
from attnbench.layers.tiles import affinities


def tokens(grid, *, images=2, heads=2, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, heads, grid[0] * grid[1], dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("grid", "size"), [((4, 6), 2), ((7, 9), 4), ((3, 5), 8)])
def test_cut_tiles_hold_the_tokens_of_their_square(grid, size):
    """Each token lies where its row and column say; places outside are zeros; joining undoes it."""
    tiling, x = Tiling(grid, size), tokens(grid)
    tiles = tiling.cut(x)
    rows, columns = tiling.tiles
    for t in range(tiling.num_tiles):
        for s in range(size * size):
            y, z = t // columns * size + s // size, t % columns * size + s % size
            inside = y < grid[0] and z < grid[1]
            expected = x[:, :, y * grid[1] + z] if inside else torch.zeros_like(x[:, :, 0])
            assert torch.equal(tiles[:, :, t, s], expected)
            assert tiling.valid is None or tiling.valid[t, s] == inside
    assert (tiling.valid is None) == (rows * size == grid[0] and columns * size == grid[1])
    assert torch.equal(tiling.join(tiles), x)


def test_means_are_over_the_tokens_there_are():
    """In a tile that sticks out the zeros do not count; halves are averaged in fp32."""
    tiling, x = Tiling((3, 5), 4), tokens((3, 5))
    means = tiling.mean(tiling.cut(x))
    right = x.unflatten(2, (3, 5))[..., 4, :].mean(2)  # the second tile has one column
    torch.testing.assert_close(means[:, :, 1], right, rtol=1e-12, atol=1e-12)
    assert tiling.mean(tiling.cut(x.bfloat16())).dtype == torch.float32


def test_equal_scores_go_to_the_first_tile():
    """Among equals the lower number is taken, infinities included, and the answer is in the tiles' order."""
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0], [0.0, -1.0, 5.0, torch.inf]])
    assert largest_tiles(scores, 2).tolist() == [[1, 2], [0, 1], [2, 3]]
    assert ranked_tiles(scores).tolist() == [[1, 2, 3, 0], [0, 1, 2, 3], [3, 2, 0, 1]]
    wide = torch.zeros(3, 5000)  # where an unstable sort would show
    assert largest_tiles(wide, 3).tolist() == [[0, 1, 2]] * 3


def test_choices_do_not_depend_on_the_batch():
    """An image's scores and choices are the same alone and among others, ties between equal tiles too."""
    tiling, x = Tiling((8, 8), 4), tokens((8, 8), images=5, dim=8).float()
    x[1] = x[1, :, :1]  # every token alike: all tiles tie
    x[2] = x[2].unflatten(1, (8, 8)).roll(4, 1).flatten(1, 2)
    means = tiling.mean(tiling.cut(x))
    together = largest_tiles(affinities(means, means), 2)
    alone = torch.cat([largest_tiles(affinities(m[None], m[None]), 2) for m in means])
    assert torch.equal(together, alone)
    assert together[1].unique().tolist() == [0, 1]


def test_chosen_tiles_are_copied_as_asked():
    """One choice for all images and heads, and one for each query tile of each head."""
    tiles = Tiling((4, 6), 2).cut(tokens((4, 6)))  # [2, 2, 6, 4, 3]
    shared = torch.tensor([[0, 5], [3, 3]])
    assert torch.equal(choose(tiles, shared), tiles[:, :, shared])
    own = torch.randint(6, (2, 2, 7, 3), generator=torch.Generator().manual_seed(1))
    found = choose(tiles, own)
    for b, h, i, j in [(0, 0, 0, 0), (0, 1, 6, 2), (1, 0, 3, 1), (1, 1, 5, 0)]:
        assert torch.equal(found[b, h, i, j], tiles[b, h, own[b, h, i, j]])


@pytest.mark.parametrize(("grid", "size"), [((4, 6), 2), ((5, 7), 3)])
def test_all_tiles_chosen_is_softmax_attention(grid, size):
    """Padding and order of the tiles leave no trace."""
    tiling = Tiling(grid, size)
    q, k, v = (tokens(grid, seed=seed) for seed in range(3))
    every = torch.arange(tiling.num_tiles).expand(tiling.num_tiles, -1)
    found = tiling.join(tiling.attend(*(tiling.cut(z) for z in (q, k, v)), every))
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-12)


def test_the_whole_map_is_never_made():
    """No tensor of an attention with 2 of 64 tiles has a tenth of the N x N scores' elements."""
    grid, largest = (32, 32), []
    tiling = Tiling(grid, 4)
    q, k, v = (tokens(grid, images=1, heads=1, seed=seed).requires_grad_() for seed in range(3))
    tiles = [tiling.cut(z) for z in (q, k, v)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: largest.append(t.numel()) or t, lambda t: t):
        chosen = largest_tiles(affinities(*(tiling.mean(z) for z in tiles[:2])), 2)
        tiling.attend(*tiles, chosen)
    assert max(largest) < 1024**2 / 10


def picked(kind, tiles=6, queries=63, keep=3):
    """Tiles of each query, [2, 2, N, K]: at random, or the same for all, which fills groups least evenly."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(2, 2, queries, tiles, generator=generator)
    if kind == "alike":
        scores = scores[:, :, :1].expand_as(scores)
    return largest_tiles(scores, keep)


@pytest.mark.parametrize("kind", ["random", "alike"])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_groups_hold_every_pair_once_beside_its_tile(kind, rows):
    """Whatever was chosen: a place for each pair, none shared, in a group of the pair's tile."""
    chosen = picked(kind)
    groups = group_by_tile(chosen, 6, rows)
    assert groups.pair.shape[2] == groups.tile.shape[2] * rows
    for b, h in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        place = groups.place[b, h]
        assert len(place.unique()) == 63 * 3
        assert groups.pair[b, h][place].tolist() == list(range(63 * 3))
        assert torch.equal(groups.tile[b, h][place // rows], chosen[b, h].flatten())


@pytest.mark.parametrize("kind", ["random", "alike"])
def test_grouped_attention_is_that_of_copied_tiles(kind):
    """Outputs and gradients against copies of each query's tiles, on a grid with places outside."""
    tiling, chosen = Tiling((7, 9), 4), picked(kind)
    q, k, v = (tokens((7, 9), seed=seed).requires_grad_() for seed in range(3))
    k_near, v_near = (choose(tiling.cut(z), chosen).flatten(3, 4) for z in (k, v))  # [B, H, N, K S, D]
    mask = tiling.valid[chosen].flatten(3).unsqueeze(-2)
    expected = F.scaled_dot_product_attention(q.unsqueeze(-2), k_near, v_near, mask).squeeze(-2)
    found = grouped_attention(q, tiling.cut(k), tiling.cut(v), chosen, tiling.valid)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        *(torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
