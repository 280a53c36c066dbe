"""Intervals hold what they are of: a simulation with redrawn samples, as in reports/coverage."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "reports" / "coverage" / "measure.py"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "n"), [(0, 500), (1, 500), (2, 500), (3, 500), (3, 2000)])
def test_intervals_cover(number, n):
    """Every metric's interval holds its mean in 92 to 98 % of the draws, but for the draws' own error.

    The script has all four cases at 2,000 images, which take minutes.
    """
    script = runpy.run_path(str(SCRIPT))
    draws = 150
    error = (0.95 * 0.05 / draws) ** 0.5  # of a share of 150 draws
    found = list(script["coverage"](script["CASES"][number], n, draws))
    assert len(found) == 7
    for one in found:
        assert 0.92 - 2 * error < one.covered, one
        assert one.covered < 0.98 + 2 * error or one.width < 1.4, one
