"""The neutral tables: what the comparison and the cost table contain, and what they mark as best."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import HOSTILE, make_result, make_suite, with_measurement
from seed_cases import make_seeds

from attnbench.report import comparison_table
from attnbench.report.compare.compared import compared_quantities
from attnbench.report.costs import cost_table, other_table, problems_table, training_table
from attnbench.report.placement import spread_out
from attnbench.report.sections import definitions
from attnbench.report.tables import Cell, Column, Row, Table, plain, select_columns, significant
from attnbench.results import Measurement


def column(table: Table, title: str) -> list[Cell]:
    """Return the cases under a heading."""
    index = [c.title for c in table.columns].index(title)
    return [row.cells[index] for row in table.rows]


def test_importing_the_report_loads_no_heavy_package() -> None:
    """Reports come without torch, and matplotlib and numpy wait until a figure is drawn."""
    code = "import sys, attnbench.report; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_headings_carry_unit_arrow_and_n() -> None:
    """Each heading says unit, direction and how many images stand behind it."""
    shown = {c.name: c.small_print for c in comparison_table(make_suite()).columns}
    assert shown["Parameters"] == "M"
    assert shown["MACs, paper's count"] == shown["MACs, full count"] == "G"
    assert shown["FD-digits ↓"] == shown["IS-digits ↑"] == "n = 500"
    assert shown["Latency ↓"] == "ms"


def test_rows_are_cases_then_the_floor() -> None:
    """Every result has its row, failed ones too, and the real images come last."""
    rows = comparison_table(make_suite()).rows
    assert [row.status for row in rows] == ["ok"] * 6 + ["failed", "floor"]
    assert rows[-1].cells[0].text == "real held-out images (floor)"
    assert rows[5].cells[0].text == HOSTILE


def test_units_are_converted_once() -> None:
    """612,345 parameters are 0.612 M and 7.9e6 multiply-adds 0.0079 G."""
    table = comparison_table(make_suite())
    assert column(table, "Parameters")[0].text == "0.612"
    assert column(table, "MACs, full count")[0].value == pytest.approx(0.0079)


def test_paper_sizes_print_to_the_papers_digit() -> None:
    """98.55 and 5.98 G multiply-adds print with the two decimals of the paper's tables."""
    results = [
        with_measurement(make_result("l", 0), Measurement(name="macs_paper@8", values=[98.5549e9])),
        with_measurement(make_result("s", 1), Measurement(name="macs_paper@8", values=[5.9810e9])),
    ]
    assert [c.text for c in column(comparison_table(results), "MACs, paper's count")] == [
        "98.55",
        "5.98",
        "–",
    ]


def test_best_is_marked_among_finished_cases_only() -> None:
    """Neither the floor nor a failed case is ever the best."""
    best_failed = make_suite()
    best_failed[6] = with_measurement(
        best_failed[6], Measurement(name="FD-digits", values=[0.1], better="lower")
    )
    assert [c.best for c in column(comparison_table(best_failed), "FD-digits")] == [True] + [False] * 7


def test_direction_decides_the_best() -> None:
    """Recall rises with the index in the suite, distance too: best are the last and the first."""
    table = comparison_table(make_suite())
    assert [c.best for c in column(table, "R-digits")].index(True) == 5
    assert [c.best for c in column(table, "KD-digits")].index(True) == 0
    assert not any(c.best for c in column(table, "Parameters"))


def test_ties_share_the_mark_and_nan_never_gets_it() -> None:
    """Values that print alike are marked alike; NaN is shown and loses."""
    values = [12.001, 12.002, math.nan, 13.0]
    results = [
        with_measurement(make_result(f"c{i}", i), Measurement(name="FD-digits", values=[value], n=9))
        for i, value in enumerate(values)
    ]
    cells = column(comparison_table(results), "FD-digits")
    assert [c.best for c in cells] == [True, True, False, False, False]
    assert cells[2].text == "nan"


def test_spread_and_real_accuracy_stand_beside_their_values() -> None:
    """The kernel distance has its deviation, the class accuracy the classifier's on real images."""
    table = comparison_table(make_suite())
    assert column(table, "KD-digits")[0].detail == "± 0.0011"
    assert column(table, "Class accuracy")[0].detail == "real 0.964"
    assert column(table, "Class accuracy")[-1].text == "0.964"


def test_separability_of_similar_classes_has_its_columns() -> None:
    """Beside the class accuracy, with real images below and words; without a value there is no column."""
    results = [
        with_measurement(
            make_result(label, index),
            Measurement(name="silhouette-digits", values=[-0.1 + 0.2 * index], n=250, better="higher"),
            Measurement(name="floor:silhouette-digits", values=[0.2], n=200),
            Measurement(name="knn_accuracy-digits", values=[], note="not measured: too few"),
        )
        for index, label in enumerate("ab")
    ]
    table = comparison_table(results)
    shown = column(table, "Silhouette-digits")
    assert [(cell.value, cell.best) for cell in shown] == [(-0.1, False), (0.1, True), (0.2, False)]
    assert {c.title: c.n for c in table.columns}["Silhouette-digits"] == "250"
    assert not any(c.title.startswith("kNN accuracy") for c in table.columns)
    assert "lie closest" in dict(definitions(results))["Silhouette-digits"]
    assert "silhouette-digits" not in {c.title for c in getattr(other_table(results), "columns", ())}
    (compared,) = (q for q in compared_quantities(results) if q.name == "silhouette-digits")
    assert (compared.group, compared.quantity.better) == ("quality", "higher")


def test_an_interval_of_silhouettes_may_lie_below_zero() -> None:
    """Of three seeds, where a share's would be cut at 0."""
    results = [
        with_measurement(
            result, Measurement(name="silhouette-digits", values=[-0.1 + 0.01 * result.case["seed"]])
        )
        for result in make_seeds(levels={"softmax": 9.0})
    ]
    # -0.09 -+ 4.303 * 0.01 / sqrt(3)
    assert "−0.1148 to −0.0652" in column(comparison_table(results), "Silhouette-digits")[0].detail


def test_different_floors_get_a_row_each() -> None:
    """Cases on different data have different floors, and each floor says for whom it is."""
    other = with_measurement(make_result("b", 1), Measurement(name="floor:FD-digits", values=[7.0]))
    rows = comparison_table([make_result("a", 0), other]).rows
    assert [row.cells[0].text for row in rows[2:]] == [
        "real held-out images (floor), for a",
        "real held-out images (floor), for b",
    ]


def test_cases_of_different_sides_name_theirs() -> None:
    """Where resolutions differ between rows, a column says which is meant."""
    table = comparison_table([make_result("a", 0, side=8), make_result("b", 1, side=16)])
    assert [c.text for c in column(table, "Side")] == ["8", "16", "–"]


def test_the_data_side_stands_for_a_case() -> None:
    """Of several profiled resolutions the comparison shows the one of the data."""
    small, large = make_result("a", 0, side=16), make_result("a", 0, side=256)
    result = with_measurement(large, *(m for m in small.measurements if "@16" in m.name))
    data = {"data": {"name": "image-folder", "image_size": 256}}
    result = with_measurement(result, Measurement(name="macs_full@16", values=[5e9]))
    chosen = comparison_table([result.model_copy(update={"case": data})])
    assert column(chosen, "MACs, full count")[0].value == pytest.approx(0.0079)
    assert column(comparison_table([result]), "MACs, full count")[0].value == pytest.approx(5.0)


def test_cost_table_has_a_row_per_case_and_resolution() -> None:
    """Two resolutions give two blocks, each with its own best."""
    results = [
        with_measurement(make_result(label, i), *make_result(label, i, side=16).measurements)
        for i, label in enumerate(("a", "b"))
    ]
    table = cost_table(results)
    assert table is not None
    assert [c.text for c in column(table, "Side")] == ["8", "8", "16", "16"]
    assert [c.best for c in column(table, "Latency")] == [True, False, True, False]


def test_a_measurement_without_values_shows_its_note() -> None:
    """A row that ran out of time says so where its number would stand."""
    slow = Measurement(name="latency_ms@8", values=[], note="skipped: over 120 s")
    table = cost_table([make_result("a", 0), with_measurement(make_result("b", 1), slow)])
    assert table is not None
    assert column(table, "Latency")[1] == Cell(detail="skipped: over 120 s")


def test_nothing_measured_is_no_table() -> None:
    """Without profile, training or plugin values there is no empty table."""
    bare = [make_result("a", 0, measurements=[])]
    assert cost_table(bare) is None
    assert training_table(bare) is None
    assert other_table(bare) is None
    assert problems_table(bare) is None


def test_unknown_measurements_land_in_their_own_table() -> None:
    """A plugin's value is shown with its unit, and only there."""
    table = other_table(make_suite())
    assert table is not None
    units = {c.title: c.unit for c in table.columns[1:]}
    assert units == {"cpu_time_ms@8": "ms", "router_entropy": "nat"}


def test_problems_name_case_status_and_reason_on_one_line() -> None:
    """A reason with a line break stays one case."""
    table = problems_table(make_suite())
    assert table is not None
    assert [c.text for c in table.rows[0].cells] == [
        "dydila(mode=map)",
        "failed",
        "NonFiniteError: NaN after blocks.2.attention in step 118 lower the learning rate",
    ]


def test_rows_must_fit_the_heading() -> None:
    """A table with a missing case cannot be built."""
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(title="t", columns=(Column(title="a"), Column(title="b")), rows=(Row(cells=(Cell(),)),))


def test_selected_columns_keep_labels_and_drop_an_empty_floor() -> None:
    """The cost columns alone keep every case's label but not the row of real images."""
    whole = comparison_table(make_suite())
    wanted = [i for i, c in enumerate(whole.columns) if c.group == "Cost"]
    part = select_columns(whole, wanted, "cost")
    assert [c.title for c in part.columns] == ["Case", "Latency", "Live memory", "Train step"]
    assert [row.status for row in part.rows] == ["ok"] * 6 + ["failed"]


@given(st.text())
def test_plain_is_one_printable_line_and_stable(text: str) -> None:
    """Whatever a label holds, its plain form has no control character and does not change again."""
    shown = plain(text)
    assert all(c.isprintable() for c in shown)
    assert not set(shown) & {"\n", "\r", "\x1b", "\u202e", "\x00"}
    assert plain(shown) == shown
    shown.encode("utf-8")


@given(st.floats(1e-6, 1e9))
def test_significant_keeps_four_digits(value: float) -> None:
    """The printed value is within half a unit of the fourth digit of the true one."""
    printed = float(significant(value).replace(",", ""))
    # half a unit of the fourth digit is at most 0.5/1000 of the value; 1e-12 for fp64's rounding
    assert abs(printed - value) <= 0.0005 * value * (1 + 1e-12)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_labels_keep_their_distance_and_order(heights: list[float]) -> None:
    """Twelve labels 0.08 apart fit into [0, 1]: none overlaps, none leaves, none overtakes another."""
    placed = spread_out(heights, 0.08)
    ordered = sorted(placed)
    rounding = 1e-9  # sums of a dozen numbers near one
    assert all(b - a >= 0.08 - rounding for a, b in itertools.pairwise(ordered))
    assert all(-rounding <= p <= 1 + rounding for p in placed)
    assert all(placed[i] <= placed[j] for i, a in enumerate(heights) for j, b in enumerate(heights) if a < b)


def test_what_stands_behind_a_plus_minus_is_said() -> None:
    """An interval over images, also where the floor alone has one; an earlier version's spread is none."""
    results = make_suite()[:2]
    earlier, interval = "standard deviation over subsets", "half of a 95 % interval over images"
    notes = " ".join(comparison_table(results).notes)
    assert earlier in notes
    assert interval not in notes
    floor = Measurement(name="floor:FD-digits", values=[0.3], interval=(0.2, 0.4), n=500, better="lower")
    assert interval in " ".join(comparison_table([with_measurement(r, floor) for r in results]).notes)
