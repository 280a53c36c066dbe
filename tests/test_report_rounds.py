"""Intervals and verdicts of latencies hold where rounds drift: simulated as in reports/profile."""

import runpy
from pathlib import Path

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "reports" / "profile" / "rounds.py"))
TRIES = 20


def test_a_tenth_slower_is_found_every_time():
    """In rounds that differ by 3 % a case 10 % slower is called slower, 20 times of 20.

    A pair's ratio scatters by 2 % times the root of two, so that 10 % are three and a half deviations: of
    some 20 pairs next to none lies below 1, and the sign test cannot miss.
    """
    found = [SCRIPT["compared"](seed, 1.1, SCRIPT["after"](24)) for seed in range(TRIES)]
    assert [ratio.words for ratio in found] == ["slower"] * TRIES
    # the median of 20 such ratios errs by 1.25 * 2.8 % / 20^0.5 = 0.8 %: four of those
    assert all(abs(ratio.value - 1.1) < 4 * 0.008 * 1.1 for ratio in found)


def test_equal_times_are_called_different_once_in_twenty_at_most():
    """Two cases of the same time are told apart in at most 5 % of the tries."""
    found = [SCRIPT["compared"](seed, 1.0, SCRIPT["after"](24)).words for seed in range(TRIES)]
    assert found.count("not distinguishable") >= TRIES - 1


def test_an_interval_over_rounds_covers_and_one_over_samples_does_not():
    """Of 200 intervals at least 95 % hold the time, but for the draws' own error; of those over samples, few.

    The median of twelve rounds that drift by 2.8 % errs by 1.25 * 2.8 % / 12^0.5 = 1 %. Some 450 samples,
    taken as independent, have an interval of ± 1.96 * 1.25 * 3 % / 450^0.5 = 0.35 %: it holds one in four.
    """
    draws = 200
    found = SCRIPT["measure"](SCRIPT["after"](12), draws, factors=())
    assert found.covered >= 0.95 - 2 * (0.95 * 0.05 / draws) ** 0.5
    assert found.covered_by_samples < 0.5
