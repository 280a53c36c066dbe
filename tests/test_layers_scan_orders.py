"""Scan orders: every token once, ZigMa's eight walks without a jump, and back again."""

from __future__ import annotations

import itertools

import pytest
import torch
from references.pieces import visits

from attnbench.layers.scan_orders import TokenOrder, scan_order

GRIDS = [(4, 4), (3, 5), (5, 2), (1, 4)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["raster", "transposed", "zigma"])
def test_orders_are_the_walks_of_the_references(name, grid):
    """Nine layers visit the tokens as the reference walks, which turns at walls instead of counting lines."""
    for layer_idx in range(9):
        assert scan_order(name, grid, layer_idx) == visits(name, grid, layer_idx)


@pytest.mark.parametrize("grid", GRIDS)
def test_zigzags_never_jump(grid):
    """Each step of each of the eight schemes goes to a neighbour, and every token is visited once."""
    for layer_idx in range(8):
        order = scan_order("zigma", grid, layer_idx)
        assert sorted(order) == list(range(grid[0] * grid[1]))
        places = [divmod(token, grid[1]) for token in order]
        steps = [abs(y - v) + abs(x - u) for (y, x), (v, u) in itertools.pairwise(places)]
        assert set(steps) == {1}


def test_eight_schemes_from_four_corners():
    """The schemes differ, begin again after eight layers, and start twice in each corner in ZigMa's order."""
    orders = [tuple(scan_order("zigma", (3, 4), layer_idx)) for layer_idx in range(16)]
    assert len(set(orders[:8])) == 8
    assert orders[:8] == orders[8:]
    assert [order[0] for order in orders[:8]] == [0, 0, 3, 3, 8, 8, 11, 11]
    assert orders[3][:4] == (3, 7, 11, 10)  # second corner, column by column, down and up again


@pytest.mark.parametrize("name", ["raster", "transposed", "zigma"])
def test_tokens_come_back(name):
    """from_scan undoes to_scan; the state dict holds nothing, so that weights fit other grids."""
    x = torch.randn(2, 15, 3)
    for layer_idx in range(8):
        order = TokenOrder(name, (3, 5), layer_idx)
        scanned = order.to_scan(x)
        assert torch.equal(scanned, x[:, visits(name, (3, 5), layer_idx)])
        assert torch.equal(order.from_scan(scanned), x)
        assert not order.state_dict()
