"""Several seeds: one row per configuration, bold where significant, and words where nothing can be told."""

from __future__ import annotations

import io
import math
import statistics

import pytest
from report_cases import HOSTILE, make_result, with_measurement
from rich.console import Console
from scipy import stats
from seed_cases import failed, make_seeds, seeded

from attnbench.report import TerminalTable, comparison_table
from attnbench.report.comparison import seed_table
from attnbench.report.configurations import configurations, seed_values
from attnbench.report.costs import cost_table, training_table
from attnbench.report.markdown import render_table
from attnbench.report.settings import settings_tables
from attnbench.report.tables import Cell, Table
from attnbench.results import Result


def column(table: Table | None, title: str) -> list[Cell]:
    """Return the cells under a heading."""
    assert table is not None
    index = [c.title for c in table.columns].index(title)
    return [row.cells[index] for row in table.rows]


def without(result: Result, name: str, value: float) -> Result:
    """Return a case whose measurement of that name has another value."""
    found = result.measurement(name)
    assert found is not None
    return with_measurement(result, found.model_copy(update={"values": [value]}))


def test_seeds_are_one_row_with_mean_deviation_interval_and_count() -> None:
    """Nine cases are three rows; the seed is no column, and how many there are is one."""
    results = make_seeds()
    table = comparison_table(results)
    assert [cell.text for cell in column(table, "Case")][:3] == ["softmax", "linear", HOSTILE]
    assert [cell.text for cell in column(table, "Seeds")] == ["3", "3", "3", "–"]
    assert "seed" not in [c.title for c in table.columns]
    values = [m.value for r in results[:3] if (m := r.measurement("FD-digits"))]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=deviation / math.sqrt(3))
    shown = column(table, "FD-digits")[0]
    assert shown.value == pytest.approx(mean)
    assert shown.detail == f"sd {deviation:.2f}, {low:.2f} to {high:.2f}"
    assert any("95 % t interval of the mean" in note for note in table.notes)


def test_bold_is_significant_and_the_rest_is_named_not_distinguishable() -> None:
    """The attention that is best at every seed is bold; two that take turns are marked, and named."""
    table = comparison_table(make_seeds())
    assert [(c.best, c.marks) for c in column(table, "FD-digits")][:3] == [
        (False, ""),
        (False, ""),
        (True, ""),
    ]
    assert {c.marks for c in column(table, "IS-digits")[:3]} == {"≈"}
    assert not any(c.best for c in column(table, "IS-digits"))
    (close,) = (note for note in table.notes if note.startswith("≈"))
    assert ": softmax (best mean), linear, " in close
    assert "IS-digits" in close
    assert "FD-digits" not in close
    (bold,) = (note for note in table.notes if note.startswith("Bold"))
    assert "t test" in bold
    assert "4 degrees of freedom" in bold


def test_a_lead_within_the_spread_is_not_bold() -> None:
    """The lower mean of two that differ by a tenth of their spread is nobody's win."""
    table = comparison_table(make_seeds(levels={"softmax": 12.0, "linear": 12.01}))
    assert not any(c.best for c in column(table, "FD-digits"))
    assert [c.marks for c in column(table, "FD-digits")] == ["≈", "≈", ""]


def test_a_seed_that_failed_leaves_the_others() -> None:
    """The row says how many finished; with one left, no test tells it from the best."""
    results = make_seeds()
    results[4] = failed(results[4])
    table = comparison_table(results)
    assert [cell.text for cell in column(table, "Seeds")] == ["3", "2 of 3", "3", "–"]
    assert table.rows[1].status == "ok"
    assert any("2 of 3" in note for note in table.notes)
    results[5] = failed(results[5])
    table = comparison_table(results)
    assert column(table, "FD-digits")[1].marks == "?"
    assert any(note.startswith("?") and "linear: one seed" in note for note in table.notes)
    assert not any(c.best for c in column(table, "FD-digits"))
    results[3] = failed(results[3])
    rows = comparison_table(results).rows
    assert [row.status for row in rows] == ["ok", "failed", "ok", "floor"]
    assert column(comparison_table(results), "Seeds")[1].text == "0 of 3"


def test_nan_of_one_seed_is_told_and_left_out() -> None:
    """The mean of what is finite, with a word on the seed that is not; NaN throughout stays NaN."""
    results = make_seeds()
    results[1] = without(results[1], "FD-digits", math.nan)
    shown = column(comparison_table(results), "FD-digits")[0]
    kept = [m.value for r in (results[0], results[2]) if (m := r.measurement("FD-digits"))]
    assert shown.value == pytest.approx(statistics.fmean(kept))
    assert shown.detail.endswith("without seed 1: nan or inf")
    results[:3] = [without(result, "FD-digits", math.nan) for result in results[:3]]
    shown = column(comparison_table(results), "FD-digits")[0]
    assert (shown.text, shown.best, shown.marks) == ("nan", False, "")


def test_values_that_no_seed_moves_are_not_ranked() -> None:
    """Equal at every seed: no repetition, so no test and no bold, and the note says why."""
    results = [
        without(result, "FD-digits", 9.0 if "linear" in result.label else 8.0) for result in make_seeds()
    ]
    table = comparison_table(results)
    assert not any(c.best for c in column(table, "FD-digits"))
    assert any("the values do not vary over seeds" in note for note in table.notes)


def test_shares_and_distances_keep_their_bounds() -> None:
    """An interval of a share ends at 1 and one of a distance at 0, whatever three seeds' t makes of it."""
    results = make_seeds(levels={"softmax": 1.0})
    for i, (share, distance) in enumerate(((1.0, 0.0), (0.9, 1.0), (1.0, 0.1))):
        results[i] = without(without(results[i], "P-digits", share), "FD-digits", distance)
    table = comparison_table(results)
    assert column(table, "P-digits")[0].detail.endswith(" to 1.000")
    assert ", 0.00 to " in column(table, "FD-digits")[0].detail


def test_costs_are_those_of_one_profile() -> None:
    """Seeds share one profile: one row in the cost table, bold where paired rounds are faster."""
    results = make_seeds()
    table = cost_table(results)
    assert [c.text for c in column(table, "Case")] == ["softmax", "linear", HOSTILE]
    assert [c.best for c in column(comparison_table(results), "Latency")][:3] == [True, False, False]
    equal = [
        with_measurement(result, m) for result in results
        if (m := make_result("", 0).measurement("latency_ms@8"))
    ]  # fmt: skip
    assert not any(c.best for c in column(comparison_table(equal), "Latency"))


def test_seeds_profiled_twice_keep_both_rows() -> None:
    """Where the seeds of a row have different profiles, none is dropped, and each goes by its case."""
    results = make_seeds(seeds=(0, 1), levels={"softmax": 12.0})
    other = make_result("", 3).measurement("latency_ms@8")
    assert other is not None
    results[1] = with_measurement(results[1], other)
    assert [c.text for c in column(cost_table(results), "Case")] == ["softmax · seed=0", "softmax · seed=1"]


def test_single_values_stand_in_tables_of_their_own() -> None:
    """The quality of each seed and its training: as many rows as cases, and no best among repetitions."""
    results = make_seeds()
    for table in (seed_table(results), training_table(results)):
        assert table is not None
        assert len(table.rows) == 9
        assert not any(cell.best for row in table.rows for cell in row.cells)
    assert [c.text for c in column(seed_table(results), "Seed")][:4] == ["0", "1", "2", "0"]
    assert seed_table(make_seeds(seeds=(0,))) is None


def test_one_seed_says_that_bold_is_no_significance() -> None:
    """As ever: the best printed value is bold, and the note says that it is that alone."""
    table = comparison_table(make_seeds(seeds=(0,)))
    assert [c.best for c in column(table, "FD-digits")] == [False, False, True, False]
    assert "bold marks the best printed value, not significance" in table.notes[0]
    assert "Seeds" not in [c.title for c in table.columns]


def test_different_seeds_of_one_each_mark_no_best() -> None:
    """The draw of the seed is in the difference: nothing is best, and the note says why."""
    results = [seeded(label, i, i, 9.0 + i) for i, label in enumerate(("softmax", "linear"))]
    table = comparison_table(results)
    assert not any(c.best for c in column(table, "FD-digits"))
    assert "different seeds" in table.notes[0]
    assert "seeds 0 (softmax); 1 (linear)" in " ".join(table.notes)


def test_settings_have_one_row_per_configuration() -> None:
    """What differs is shown once for all seeds of a row; the seeds are a setting that all share."""
    differing, shared = settings_tables(make_seeds())
    assert differing is not None
    assert len(differing.rows) == 3
    assert {row.cells[0].text: row.cells[1].text for row in shared.rows}["seed"] == "0, 1, 2"  # type: ignore[union-attr]


def test_two_results_of_one_seed_are_no_two_seeds() -> None:
    """The same case of two runs is a row of its own: nothing is averaged that is no repetition."""
    results = make_seeds(levels={"softmax": 12.0})
    again = results[0].model_copy(update={"case_id": "another"})
    found = configurations([*results, again])
    assert [c.seeds for c in found] == [(0, 1, 2), (0,)]
    assert seed_values(found[0], "FD-digits").keys() == {0, 1, 2}


def test_markup_in_labels_stays_text_and_marks_are_shown() -> None:
    """In Markdown and in a terminal a hostile label is what it says, in notes too."""
    results = make_seeds(levels={HOSTILE: 12.0, "linear": 12.01})
    text = render_table(comparison_table(results))
    assert "<script>" not in text
    assert "$x$" not in text
    out = io.StringIO()
    Console(file=out, width=400).print(TerminalTable(comparison_table(results)))
    assert HOSTILE in out.getvalue()
    assert f"{HOSTILE} (best mean), linear" in " ".join(out.getvalue().split())
    (row,) = (line for line in out.getvalue().splitlines() if "│ linear" in line and "≈" in line)
    assert "≈" in row
