"""A few of the random strikes of kills.py; the long run is `python tests/kills.py`."""

import pytest
from kills import attempt, harness

SEEDS = (4, 33)  # both kinds of ends: killed, and stopped in good order twice


@pytest.mark.slow
def test_a_struck_run_ends_where_an_undisturbed_one_does(tmp_path):
    """Signals at random moments lose nothing that is finished, and leave neither traces nor processes."""
    with harness(tmp_path) as whole:
        tries = [attempt(whole, seed) for seed in SEEDS]
    assert [found for found in tries if found.problems] == []
