"""What seeds allow to say, simulated: a few draws of reports/seeds."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "reports" / "seeds" / "measure.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """Return what the script defines."""
    return runpy.run_path(str(SCRIPT))


def test_whole_tables_without_a_difference_show_none(script: dict[str, Any]) -> None:
    """Of 40 tables, four rows and six columns without a difference, hardly any shows a bold value."""
    found = script["on_the_page"](40)
    # at a true rate of 5 % or less, three standard errors more are no luck
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)
    assert found["any bold"] <= limit
    assert found["any value without ≈"] <= limit


def test_power_rises_with_seeds_and_with_the_difference(script: dict[str, Any]) -> None:
    """Among six rows, three seeds find twice the spread in half of the draws, ten in all but a few."""
    lines = {line["seeds"]: line for line in script["power"](200, 6, 0.0)}
    error = 3 * math.sqrt(0.25 / 200)
    assert lines[3]["2 sd"] > 0.5 - error
    assert lines[10]["2 sd"] > 0.9
    assert lines[3]["0.5 sd"] < lines[3]["2 sd"] < lines[3]["4 sd"]
    assert lines[2]["2 sd"] < lines[5]["2 sd"] <= lines[10]["2 sd"]
