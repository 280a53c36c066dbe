"""One of the random strikes of kills.py; the long run is `python tests/kills.py`."""

import pytest
from kills import attempt, harness


@pytest.mark.slow
def test_a_struck_run_ends_where_an_undisturbed_one_does(tmp_path):
    """Signals at random moments lose nothing that is finished, and leave neither traces nor processes."""
    with harness(tmp_path) as whole:
        assert attempt(whole, seed=4).problems == ()
