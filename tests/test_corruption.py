"""A few of the random damages of corruption.py; the long run is `python tests/corruption.py`."""

import pytest
from corruption import GOOD, attempt, make_stores

SEEDS = range(1000, 1012)


@pytest.mark.slow
def test_no_damage_is_silent_or_a_traceback(tmp_path):
    """A damaged file of a finished or half finished store changes no number without a word."""
    whole = make_stores(tmp_path)
    tries = [attempt(tmp_path, whole, seed) for seed in SEEDS]
    assert [found for found in tries if found.outcome not in GOOD] == []
    assert {found.outcome for found in tries} >= {"the same", "told"}
