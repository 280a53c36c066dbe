"""How held-out loss and oversmoothing order the attentions beside their distance."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import make_result, with_measurement

from attnbench.profiling.statistics import rank_correlation_interval
from attnbench.report.rank_agreement import rank_agreements
from attnbench.results import Measurement

SIMILARITY = "diagnose:token_similarity"


def row(label, index, distance, signal, *, name=SIMILARITY, note="", **axes):
    """Return a case with one distance and one signal; `axes` are training settings, too."""
    result = make_result(label, index)
    case = {**result.case, "train": {**result.case.get("train", {}), **axes}}
    measured = (
        Measurement(name="FD-digits", values=[distance], n=500, better="lower"),
        Measurement(name=name, values=[signal], note=note),
    )
    result = with_measurement(result, *measured)
    named = {"attention": label, **{axis: str(value) for axis, value in axes.items()}}
    return result.model_copy(update={"axes": named, "case": case})


def test_the_interval_is_the_published_one():
    """The example of Bonett's own R package statpsych, ci.spear: rho 0.8699639 of 15 pairs."""
    assert rank_correlation_interval(0.8699639, 15) == pytest.approx((0.5840951, 0.9638297), abs=1e-6)


@given(st.floats(-0.999, 0.999), st.integers(4, 500))
def test_an_interval_holds_its_value_and_mirrors(rho, n):
    """It lies within -1 to 1 around the value; that of the opposite order is its mirror image."""
    low, high = rank_correlation_interval(rho, n)
    assert -1 <= low < rho < high <= 1
    assert rank_correlation_interval(-rho, n) == pytest.approx((-high, -low))


def test_without_a_spread_there_is_no_interval():
    """Perfect agreement has no z, three pairs no variance."""
    assert rank_correlation_interval(1.0, 22) is rank_correlation_interval(-1.0, 22) is None
    assert rank_correlation_interval(0.5, 3) is None


def test_each_signal_is_held_against_the_distance():
    """Of 8 attentions one pair is swapped: rho is 1 - 6 x 2 / (8 x 63), said with its interval."""
    order = [1, 2, 4, 3, 5, 6, 7, 8]
    results = [row(f"a{i}", i, distance=i, signal=s / 10) for i, s in enumerate(order)]
    rho = 1 - 12 / (8 * 63)
    low, high = rank_correlation_interval(rho, 8)
    assert dict(rank_agreements(results))["Token similarity against FD-digits"] == (
        f"rank correlation {rho:.2f} ({low:.2f} to {high:.2f}) over 8 rows"
    )


def test_trainings_of_other_lengths_are_not_mixed():
    """The longer ones are better throughout, and order otherwise: two statements, not one."""
    results = [row(f"a{i}", i, distance=i, signal=i, steps=3) for i in range(6)]
    results += [row(f"a{i}", i, distance=i - 10, signal=-i, steps=9) for i in range(6)]
    assert dict(rank_agreements(results))["Token similarity against FD-digits"] == (
        "steps=3: rank correlation 1.00 over 6 rows; steps=9: rank correlation -1.00 over 6 rows"
    )


def test_maps_of_other_tokens_are_left_out():
    """A map that leads to input tokens instead of values is no point among the others; five are too few."""
    name, title = "diagnose:effective_rank", "Effective rank of the maps against FD-digits"
    results = [row(f"a{i}", i, distance=i, signal=-i, name=name, note="of values") for i in range(6)]
    odd = row("odd", 6, distance=-5, signal=100.0, name=name, note="of tokens")
    assert dict(rank_agreements([*results, odd]))[title] == "rank correlation -1.00 over 6 rows"
    assert title not in dict(rank_agreements([*results[:5], odd]))


def test_what_is_not_finite_or_all_alike_has_no_order():
    """NaN is left out; a signal that all share says nothing."""
    results = [row(f"a{i}", i, distance=i, signal=i) for i in range(6)]
    results[0] = row("a0", 0, distance=0, signal=math.nan)
    assert rank_agreements(results) == []
    assert rank_agreements([row(f"a{i}", i, distance=i, signal=0.5) for i in range(6)]) == []
