"""Who is best over seeds: the decision for a whole table, its false calls, and rows that no test reaches."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import studentized_range, ttest_rel

from attnbench.report.ranking import Contest, Standing, standings
from attnbench.report.significance import SeedValues, difference_over_seeds
from attnbench.results import Direction

WILD = st.dictionaries(st.integers(0, 4), st.floats(allow_nan=True, allow_infinity=True), max_size=4)


def contest(*values: SeedValues, better: Direction = "lower") -> Contest:
    """Return a contest of the rows 10, 11 and so on."""
    return Contest(rows=tuple(range(10, 10 + len(values))), values=values, better=better)


def drawn(k: int, n: int, rng: random.Random, lead: float = 0.0) -> Contest:
    """Return k rows over n seeds; only the first's lead, in deviations of the rest, sets them apart."""
    blocks = [rng.gauss(0, 1) for _ in range(n)]
    return contest(*({s: blocks[s] + rng.gauss(0, 1) - lead * (i == 0) for s in range(n)} for i in range(k)))


def test_two_rows_are_decided_by_the_paired_t_test() -> None:
    """At 5 % and one column, the best of two stands alone exactly where scipy's paired test says so."""
    seen = set()
    for seed in range(40):
        one = drawn(2, 3, random.Random(seed), lead=2)
        (found,) = standings([one])
        p = ttest_rel(*(list(values.values()) for values in one.values)).pvalue
        assert found.alone == (p <= 0.05)
        assert found.close == (() if found.alone else (found.rows[1],))
        seen.add(found.alone)
    assert seen == {True, False}


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_rows_behind_are_told_from_the_best_by_tukeys_range(better: Direction) -> None:
    """With the runner-up too close to call, each further row is decided as one of all pairs of k rows."""
    sign = -1 if better == "higher" else 1
    levels = (0.0, 0.1, 3.0, 4.2, 5.0, 30.0)
    rng = random.Random(4)
    blocks = [rng.gauss(0, 3) for _ in range(3)]
    rows = [{s: sign * (level + blocks[s] + rng.gauss(0, 1)) for s in range(3)} for level in levels]
    (found,) = standings([contest(*rows, better=better)])
    best = found.rows[0] - 10
    expected = []
    for row in (row - 10 for row in found.rows[1:]):
        others = [values for i, values in enumerate(rows) if i not in (best, row)]
        t = difference_over_seeds(rows[best], rows[row], others).t
        assert t is not None
        if studentized_range.sf(math.sqrt(2) * abs(t), len(rows), 10) > 0.05:
            expected.append(row + 10)
    assert list(found.close) == expected
    assert 0 < len(expected) < 5


def test_a_clear_winner_stands_alone() -> None:
    """Where even the runner-up is far behind, no row is close."""
    (found,) = standings([drawn(5, 3, random.Random(1), lead=20)])
    assert found.rows[0] == 10
    assert found.alone


def test_a_table_without_a_difference_shows_one_in_at_most_one_of_twenty() -> None:
    """Any bold or any row told from the best, in any of three columns: at most 5 % of 200 tables."""
    rng = random.Random(0)
    called = sum(
        any(
            len(found.close) < len(found.rows) - 1
            for found in standings([drawn(4, 3, rng) for _ in range(3)])
        )
        for _ in range(200)
    )
    # 200 tables at a true rate of 5 % or less: more than 5 % + 3 standard errors (4.6 %) would be no luck
    assert called <= 200 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 200))


def test_columns_without_a_difference_raise_the_bar() -> None:
    """What is significant as the only column need not be beside many without any difference."""
    rng = random.Random(3)
    one = next(c for c in iter(lambda: drawn(2, 3, rng, lead=3), None) if standings([c])[0].alone)
    equal = [contest({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 1.9, 2: 3.0})] * 30
    assert not standings([one, *equal])[0].alone


def test_what_no_test_reaches_is_said() -> None:
    """A single seed, no common seed and values without spread give a reason, and nobody stands alone."""
    three = {0: 1.0, 1: 1.1, 2: 0.9}
    single, apart = {1: 5.0}, {7: 5.0, 8: 6.0}
    (found,) = standings([contest(three, {0: 9.0, 1: 9.3, 2: 9.1}, single, apart)])
    assert found.rows[0] == 10
    assert dict(found.untested) == {12: "one seed", 13: "no seed in common"}
    assert not found.alone
    (constant,) = standings([contest({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0})])
    assert constant == Standing(
        rows=(10, 11), close=(), untested=((11, "the values do not vary over seeds"),)
    )
    assert not constant.alone


def test_nan_is_no_value() -> None:
    """A row whose every seed is NaN is none; a NaN at one seed leaves the others."""
    rows = [{0: math.nan, 1: math.nan}, {0: 5.0, 1: 6.0, 2: 7.0}, {0: 1.0, 1: 2.1, 2: math.nan}]
    (found,) = standings([contest(*rows)])
    assert found.rows == (12, 11)


def test_a_mean_that_other_seeds_made_makes_no_claim() -> None:
    """The best mean of its own seeds that is behind over the common ones is told from nobody."""
    lucky = {0: 5.0, 1: 5.1, 2: -90.0}
    steady = {0: 1.0, 1: 1.2}
    (found,) = standings([contest(lucky, steady)])
    assert found.rows == (10, 11)
    assert found.close == (11,)


@given(st.lists(st.lists(WILD, max_size=4), max_size=3), st.sampled_from(["lower", "higher"]))
@settings(max_examples=60, deadline=None)
def test_wild_tables_are_decided(columns: list[list[SeedValues]], better: Direction) -> None:
    """Whatever the values: every row with two of them is ranked, and close ones are among the ranked."""
    contests = [contest(*rows, better=better) for rows in columns]
    for one, found in zip(contests, standings(contests), strict=True):
        ranked = [
            row for row, values in zip(one.rows, one.values, strict=True)
            if sum(map(math.isfinite, values.values())) > 1
        ]  # fmt: skip
        assert sorted(found.rows) == ranked
        assert set(found.close) <= set(found.rows[1:])
        assert not set(found.close) & {row for row, _ in found.untested}


def test_equal_rows_are_close_to_each_other() -> None:
    """Rows that are one and the same are never told apart, however many."""
    rows = [{0: 1.0, 1: 2.0, 2: 2.5}] * 3
    (found,) = standings([contest(*rows, {0: 8.0, 1: 9.5, 2: 9.0})])
    assert len(found.close) == 2
    assert all(a < b for a, b in itertools.pairwise(found.rows))
