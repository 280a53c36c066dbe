"""Differences over seeds: against least squares on the textbook's design, scipy, and wild inputs."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attnbench.report.significance import (
    FEWEST_RANKED,
    adjusted,
    difference_over_images,
    difference_over_seeds,
    largest_pool,
    mean_interval,
    method_in_words,
    scale_of,
)
from attnbench.results import Measurement

WILD = st.dictionaries(st.integers(0, 5), st.floats(allow_nan=True, allow_infinity=True), max_size=5)
TAME = st.floats(-100, 100)


def table(k: int, n: int, seed: int = 0, spread: float = 1.0) -> list[dict[int, float]]:
    """Return k configurations over n seeds: levels, what a seed does to all, and a rest of size one."""
    rng = random.Random(seed)
    blocks = [rng.gauss(0, spread) for _ in range(n)]
    return [{s: 10 + i + blocks[s] + rng.gauss(0, 1) for s in range(n)} for i in range(k)]


def least_squares(rows: list[dict[int, float]], a: int, b: int) -> tuple[float, float, float, int]:
    """Return (difference, standard error, p, df) of two rows by least squares on dummies, in float64."""
    seeds = sorted(rows[0])
    y = np.array([row[seed] for row in rows for seed in seeds])
    design = np.array(
        [
            [*(float(i == j) for j in range(len(rows))), *(float(s == t) for t in seeds[1:])]
            for i in range(len(rows))
            for s in seeds
        ]
    )
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    df = len(y) - int(rank)
    variance = float(((y - design @ beta) ** 2).sum()) / df
    contrast = np.array([float(j == a) - float(j == b) for j in range(design.shape[1])])
    error = math.sqrt(variance * float(contrast @ np.linalg.pinv(design.T @ design) @ contrast))
    difference = float(contrast @ beta)
    return difference, error, float(2 * stats.t.sf(abs(difference) / error, df)), df


@pytest.mark.parametrize(("k", "n"), [(2, 2), (2, 5), (3, 3), (6, 3), (22, 2)])
def test_difference_is_that_of_least_squares(k: int, n: int) -> None:
    """Estimate, interval, p value and degrees of freedom of the two-way layout without interaction."""
    rows = table(k, n)
    found = difference_over_seeds(rows[0], rows[-1], rows[1:-1])
    difference, error, p, df = least_squares(rows, 0, k - 1)
    reach = stats.t.ppf(0.975, df) * error
    # the design's condition number is below 30: squared, times 2^-52, times a few hundred sums
    assert found.estimate == pytest.approx(difference, rel=1e-10, abs=1e-10)
    assert found.interval == pytest.approx((difference - reach, difference + reach), rel=1e-10, abs=1e-10)
    assert found.p == pytest.approx(p, rel=1e-10, abs=1e-10)
    assert (found.df, found.pooled, found.seeds) == (df, k, tuple(range(n)))


def test_two_configurations_are_the_paired_t_test() -> None:
    """With two configurations nothing is pooled, and scipy's paired test is the same."""
    ours, theirs = table(2, 6)
    expected = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    assert difference_over_seeds(ours, theirs).p == pytest.approx(expected.pvalue, rel=1e-12)


def test_what_a_seed_does_to_all_rows_cancels() -> None:
    """A seed that is ten worse for everybody changes neither difference nor its interval."""
    rows = table(4, 3)
    moved = [{seed: value + 10 * (seed == 1) for seed, value in row.items()} for row in rows]
    before, after = (difference_over_seeds(r[0], r[1], r[2:]) for r in (rows, moved))
    assert after.p == pytest.approx(before.p, rel=1e-9)  # values of 20: 2^-52 of them in each of a dozen sums
    assert after.interval == pytest.approx(before.interval, rel=1e-9)


def test_only_common_seeds_are_pairs() -> None:
    """A seed that one of the two lacks, or has as NaN, does not count; rows that lack more are not pooled."""
    rows = table(4, 4)
    lacking = [
        {s: v for s, v in rows[0].items() if s != 2},
        {**rows[1], 3: math.nan},
        rows[2],
        {0: 1.0, 1: 5.0},
    ]
    found = difference_over_seeds(lacking[0], lacking[1], lacking[2:])
    whole = [{s: row[s] for s in (0, 1)} for row in (*rows[:3], {0: 1.0, 1: 5.0})]
    assert found == difference_over_seeds(whole[0], whole[1], whole[2:])
    assert (found.seeds, found.pooled, found.df) == ((0, 1), 4, 3)


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({0: 1.0}, {1: 2.0}, "no seed in common"),
        ({0: math.nan}, {0: 2.0}, "no seed in common"),
        ({0: 1.0}, {0: 2.0}, "one seed in common"),
        ({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}, "the values do not vary over seeds"),
        ({0: 0.1, 1: 0.1 + 0.2}, {0: 0.3, 1: 0.5}, "the values do not vary over seeds"),  # but for rounding
    ],
)
def test_no_claim_without_repetitions(ours: dict[int, float], theirs: dict[int, float], reason: str) -> None:
    """One seed says nothing of the next one, and values that no seed moves are one value."""
    found = difference_over_seeds(ours, theirs)
    assert (found.p, found.interval, found.reason) == (None, None, reason)
    assert not found.distinguishable


def test_a_ratio_is_tested_by_logarithms() -> None:
    """Twice as large at every seed and a little: the interval holds 2 and is above 1."""
    theirs = {0: 1.0, 1: 3.0, 2: 10.0}
    ours = {
        seed: value * factor for (seed, value), factor in zip(theirs.items(), (2.0, 2.1, 1.9), strict=True)
    }
    found = difference_over_seeds(ours, theirs, scale="ratio")
    logs = [{s: math.log(v) for s, v in row.items()} for row in (ours, theirs)]
    plain = difference_over_seeds(logs[0], logs[1])
    assert found.estimate == math.exp(plain.estimate)
    assert found.p == plain.p
    assert found.interval is not None
    assert 1 < found.interval[0] < 2 < found.interval[1]
    assert found.distinguishable
    assert not difference_over_seeds(
        ours, theirs
    ).distinguishable  # as differences these are all over the place


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("FD-digits", "FID", "sFID", "IS", "latency_ms@256", "held_out_loss"), "ratio"),
        (("KD-digits", "sKID", "P", "Recall", "class_accuracy", "router_entropy"), "difference"),
    ],
)
def test_what_spreads_with_its_size_is_compared_by_ratio(names: tuple[str, ...], scale: str) -> None:
    """Kernel distances may fall below zero and shares end at 1: these are subtracted."""
    assert {scale_of(name) for name in names} == {scale}


@given(st.lists(WILD, min_size=2, max_size=5), st.sampled_from(["difference", "ratio"]))
def test_wild_values_give_no_wild_claim(rows: list[dict[int, float]], scale: str) -> None:
    """NaN, infinities, missing seeds, equal values: a p value in 0 ... 1 or a reason, either way round."""
    found = difference_over_seeds(rows[0], rows[1], rows[2:], scale)  # type: ignore[arg-type]
    back = difference_over_seeds(rows[1], rows[0], rows[2:], scale)  # type: ignore[arg-type]
    assert (found.p is None) == bool(found.reason) == (found.interval is None)
    assert (back.p is None) == (found.p is None)
    if found.p is not None and found.interval is not None and back.p is not None:
        assert 0 <= found.p <= 1
        assert found.interval[0] <= found.estimate <= found.interval[1]
        assert back.p == pytest.approx(found.p, rel=1e-6, abs=1e-9)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_adjusted_p_values_are_benjamini_hochbergs(values: list[float | None]) -> None:
    """Scipy's, place by place; tests that were not made do not count."""
    found = adjusted(values)
    tested = [p for p in values if p is not None]
    expected = stats.false_discovery_control(tested) if tested else []
    assert [p for p in found if p is not None] == pytest.approx(list(expected), rel=1e-12)
    assert [p is None for p in found] == [p is None for p in values]


@given(st.lists(TAME, min_size=2, max_size=8))
def test_interval_of_a_mean_is_students(values: list[float]) -> None:
    """The t interval from the values alone; of one value there is none."""
    found = mean_interval(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found == pytest.approx((np.mean(values) - reach, np.mean(values) + reach), rel=1e-9, abs=1e-9)
    assert mean_interval(values[:1]) is None
    assert mean_interval([*values, math.nan]) is None


def test_images_alone_speak_of_two_trainings() -> None:
    """Both intervals over images add up as squares; the basis says what the difference is about."""
    ours = Measurement(name="FD", values=[10.0], interval=(9.4, 10.6))
    theirs = Measurement(name="FD", values=[12.0], interval=(11.2, 12.8))
    found = difference_over_images(ours, theirs)
    assert found.basis == "images"
    assert found.interval == pytest.approx((-3.0, -1.0))
    assert found.p == pytest.approx(2 * stats.norm.sf(2 / (1 / 1.959964)), rel=1e-9)
    bare = difference_over_images(ours, Measurement(name="FD", values=[12.0]))
    assert (bare.p, bare.reason) == (None, "no interval over images")
    assert difference_over_images(ours, Measurement(name="FD", values=[])).reason == "a value is not finite"


def test_the_sentence_states_test_and_assumption() -> None:
    """Whoever reads bold finds which test it was, its degrees of freedom and what it takes for granted."""
    said = method_in_words(6, 3)
    for part in ("t test", "paired by seed", "6 rows", "10 degrees of freedom", "assumes", "one variance"):
        assert part in said


@pytest.mark.parametrize(("pairs", "percent"), [(FEWEST_RANKED - 1, 8), (FEWEST_RANKED, 2)])
def test_six_pairs_are_the_fewest_with_a_rank_correlation(pairs: int, percent: int) -> None:
    """By chance 8 % of the orders of five have one of 0.9 or more in size, 2 % of those of six."""
    orders = list(itertools.permutations(range(pairs)))
    correlations = np.corrcoef(np.array([range(pairs), *orders]))[0, 1:]  # of ranks: Spearman's
    assert round(100 * (abs(correlations) >= 0.9 - 1e-9).mean()) == percent


def test_reports_of_one_seed_load_no_scipy() -> None:
    """The test is loaded with its quantiles when the first difference is tested."""
    code = "import sys, attnbench.report.ranking; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_pool_that_is_stated_is_of_the_rows_that_have_the_seeds() -> None:
    """Six rows of three seeds; a row that lacks one; rows with no two seeds in common."""
    full = {0: 1.0, 1: 2.0, 2: 3.0}
    assert largest_pool([[full] * 6]) == (6, 3, True)
    assert largest_pool([[*[full] * 5, {0: 1.0, 1: 2.0}]]) == (5, 3, False)
    assert largest_pool([[full] * 2, [full] * 3]) == (3, 3, False)
    assert largest_pool([[{0: 1.0, 1: 2.0, 2: math.nan}] * 2]) == (2, 2, True)
    assert largest_pool([[{0: 1.0}, {1: 1.0}]])[0] == 1
