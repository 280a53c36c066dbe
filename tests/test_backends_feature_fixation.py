"""Feature fixation: where its channels come from, what it refuses, and what its gates cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import module_counts

from attnbench.contract import AttentionSite
from attnbench.layers import neighbour_shift
from attnbench.plugins import registry

BACKEND = registry().backend("feature-fixation")


def test_each_channel_names_the_neighbour_it_came_from():
    """Token (y, x) holds 10 y + x in every channel: those of (1, 1) on a 3 x 3 grid tell their origin."""
    tokens = torch.tensor([[10.0 * y + x] * 10 for y in range(3) for x in range(3)])[None]
    shifted = neighbour_shift(tokens, (3, 3), 1)[0]
    assert shifted[4].tolist() == [21, 1, 12, 10, 0, 22, 2, 20, 11, 11]
    # the last corner: nobody below or to the right; zero in line, its own on the diagonals
    assert shifted[8].tolist() == [0, 12, 0, 21, 11, 22, 22, 22, 22, 22]


def test_a_width_of_which_a_neighbour_lends_nothing_is_refused():
    """The reason names the shares that fit, or the way without neighbours."""
    sites = [AttentionSite(dim=dim, num_heads=1, grid=(3, 3)) for dim in (16, 12, 6)]
    options, device = BACKEND.options(), torch.device("cpu")
    reasons = [BACKEND.supports(site, options, torch.float32, device) for site in sites]
    assert reasons[0] is None
    assert "set lent_share to 8 to 12, or null" in reasons[1]
    assert "set lent_share to null" in reasons[2]


@pytest.mark.parametrize("options", [{}, {"share_gate": False, "lent_share": None, "association": "linear"}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("feature-fixation", options)
    assert len(set(counts)) == 1, counts
