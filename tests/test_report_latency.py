"""Latencies in reports: rounds as rounds, pairs of one session, disturbed rows beside the ranking."""

from __future__ import annotations

import io
import re
import statistics
from pathlib import Path

import pytest
from report_cases import (
    ENVIRONMENT,
    LABELS,
    disturbed_rounds,
    make_result,
    make_suite,
    profile_row,
    with_measurement,
    with_profile,
    without_rounds,
)
from rich.console import Console

from attnbench.profiling.protocol import Round
from attnbench.profiling.statistics import median_interval
from attnbench.report import TerminalTable, comparison_table, write_report
from attnbench.report.content import gather
from attnbench.report.costs import cost_table, other_table
from attnbench.report.pareto_chart import pareto_drawings
from attnbench.report.quantities import other_names
from attnbench.report.sections import at_a_glance, definitions
from attnbench.report.tables import Cell, Table, significant
from attnbench.results import Measurement, Result, append_result, read_results

REASON = "9 of 9 rounds waited for a core; close other programs, then run `attnbench run` again"


def cells(table: Table | None, title: str) -> list[Cell]:
    """Return the cells under a heading."""
    assert table is not None
    index = [column.title for column in table.columns].index(title)
    return [row.cells[index] for row in table.rows]


def against(results: list[Result], base: str = "softmax") -> list[tuple[str, str]]:
    """Return what the cost table says of each case's time against the baseline's."""
    return [(cell.text, cell.detail) for cell in cells(cost_table(results), f"Time against {base}")]


def suite_with_a_disturbed_case() -> list[Result]:
    """Return the made-up suite whose `linear` would be the fastest by far, were it not disturbed."""
    suite = make_suite()
    fast = [Round(latency_ms=[0.1 * t for t in r.latency_ms], cpu_time_ms=[0.1]) for r in _rounds(1)]
    row = profile_row(1, 8, rounds=disturbed_rounds(fast, range(len(fast))), disturbed=REASON)
    return [suite[0], with_profile(suite[1], row), *suite[2:]]


def _rounds(index: int) -> list[Round]:
    return profile_row(index, 8).rounds


def test_the_made_up_suite_is_no_neater_than_life() -> None:
    """Rounds end by the clock, rows by their interval: neither samples nor rounds are equal in number."""
    found = [result.measurement("latency_ms@8") for result in make_suite()]
    counts = [[len(samples) for samples in m.rounds] for m in found if m is not None]
    assert len(counts) == len(LABELS) + 1
    assert all(len(set(row)) > 1 for row in counts)
    assert len({len(row) for row in counts}) > 1
    assert len({sum(row) for row in counts}) == len(counts)


def test_every_case_of_a_session_is_compared_with_the_baseline() -> None:
    """With unequal rounds and samples too, no row is blank; each case of the suite is slower by a seventh."""
    found = against(make_suite())
    assert found[0] == ("–", "the baseline")
    assert all(detail.endswith(", slower") for _, detail in found[1:])
    for index, (text, detail) in enumerate(found):
        low, _, high = detail.removesuffix(", slower").partition(" to ")
        if index:
            assert float(low) <= float(text.removeprefix("× ")) <= float(high)
            # a median of nine ratios whose parts differ by 0.5 % and 1 % over the root of 18 samples
            assert float(text.removeprefix("× ")) == pytest.approx(1 + 0.35 * index / 2.4, rel=0.02)


def test_rounds_are_paired_and_their_drift_cancels() -> None:
    """A machine that is up to twice as slow in some rounds hides no 3 %, though the intervals overlap."""
    moods = [1.0, 2.0, 1.3, 1.7, 1.1, 1.9, 1.4]
    slow = [Round(latency_ms=[mood, mood, mood], cpu_time_ms=[1.0]) for mood in moods]
    fast = [Round(latency_ms=[0.97 * mood] * 2, cpu_time_ms=[1.0]) for mood in [*moods, 1.2, 1.5]]
    results = [
        with_profile(make_result(label, i), profile_row(i, 8, rounds=rounds))
        for i, (label, rounds) in enumerate((("softmax", slow), ("linear", fast)))
    ]
    assert against(results)[1] == ("× 0.970", "0.970 to 0.970, faster")
    (a, b), (c, d) = (cell.detail.split(" to ") for cell in cells(cost_table(results), "Latency"))
    assert float(a) < float(d)
    assert float(c) < float(b)


@pytest.mark.parametrize("table", [cost_table, comparison_table])
def test_the_interval_is_one_over_rounds(table) -> None:
    """It is the order-statistic interval of the rounds' medians, not of samples, which are far more."""
    results = make_suite()[:2]
    for cell, index in zip(cells(table(results), "Latency"), (0, 1), strict=False):
        medians = [statistics.median(r.latency_ms) for r in _rounds(index)]
        expected = median_interval(medians)
        assert cell.detail == f"{significant(expected.low)} to {significant(expected.high)}"
        assert cell.value == statistics.median(medians)


def test_rounds_samples_and_percentiles_stand_beside_the_median() -> None:
    """Rounds that were left out of the median are counted, their samples are among the percentiles."""
    rounds = disturbed_rounds(_rounds(1), [0, 2])
    results = [make_result("softmax", 0), with_profile(make_result("b", 1), profile_row(1, 8, rounds=rounds))]
    table = cost_table(results)
    samples = [t for r in rounds for t in r.latency_ms]
    shown = cells(table, "Rounds")[1]
    assert (shown.text, shown.detail) == (f"{len(rounds) - 2} of {len(rounds)}", f"{len(samples)} samples")
    low, middle, high = (float(x) for x in cells(table, "p10 / p90 / p99")[1].text.split(" / "))
    assert min(samples) < low < middle < high < max(samples)
    assert against(results)[1][1].endswith(", slower")  # the pairs that are left are enough


def test_percentiles_of_few_samples_are_not_shown() -> None:
    """Of 99 samples the 99th percentile is the largest by another name; of nine, so are the others."""
    results = []
    for index, count in enumerate((9, 99, 100)):
        timed = Measurement(name="latency_ms@8", unit="ms", values=[float(i + 1) for i in range(count)])
        results.append(with_measurement(make_result(f"case {index}", index), timed))
    shown = [cell.text for cell in cells(cost_table(results), "p10 / p90 / p99")]
    assert shown == ["– / – / –", "10.8 / 89.2 / –", "10.9 / 90.1 / 99.0"]


def test_samples_that_do_not_count_are_told() -> None:
    """What a session left out of a row stands in the count and in the percentiles, in no table of its own."""
    left_out = Measurement(name="waited_latency_ms@8", unit="ms", values=[50.0] * 100)
    results = [make_result("softmax", 0), with_measurement(make_result("b", 1), left_out)]
    table = cost_table(results)
    assert cells(table, "Rounds")[1].detail.endswith(" samples, 100 left out")
    assert "left out" not in cells(table, "Rounds")[0].detail
    assert cells(table, "p10 / p90 / p99")[1].text.endswith(" / 50.0")
    assert "waited_latency_ms@8" not in other_names(results)


def test_too_few_rounds_say_so() -> None:
    """Five rounds can carry neither a 95 % interval nor a verdict."""
    rows = [profile_row(i, 8, rounds=_rounds(i)[:5]) for i in range(2)]
    results = [with_profile(make_result(n, i), rows[i]) for i, n in enumerate(("softmax", "b"))]
    assert cells(cost_table(results), "Latency")[1].detail == "too few rounds"
    assert against(results)[1][1] == "too few rounds to tell"


def test_pairs_need_both_rounds_undisturbed() -> None:
    """Six undisturbed rounds of each are too few where they were not the same ones."""
    softmax = disturbed_rounds(_rounds(0)[:9], [0, 1, 2])
    linear = disturbed_rounds(_rounds(1)[:9], [6, 7, 8])
    results = [
        with_profile(make_result("softmax", 0), profile_row(0, 8, rounds=softmax)),
        with_profile(make_result("linear", 1), profile_row(1, 8, rounds=linear)),
    ]
    assert against(results)[1][1] == "too few rounds to tell"


def test_a_disturbed_row_is_shown_but_never_ranked() -> None:
    """It is marked with its reason wherever it stands, is no best, and neither faster nor slower."""
    results = suite_with_a_disturbed_case()
    for table in (comparison_table(results), cost_table(results), other_table(results)):
        assert table is not None
        title = "cpu_time_ms@8" if table.title == "Other measurements" else "Latency"
        shown = cells(table, title)
        assert [cell.best for cell in shown[:2]] == [True, False]
        assert shown[1].disturbed
        assert shown[1].detail.endswith("disturbed")
        assert [note for note in table.notes if REASON in note and "linear" in note]
    text, detail = against(results)[1]
    assert text.startswith("× 0.1")
    assert detail.endswith(", disturbed")
    assert "faster" not in detail


def test_against_a_disturbed_baseline_nothing_is_faster() -> None:
    """Where the baseline itself is disturbed, no ratio to it is a verdict."""
    results = make_suite()
    results[0] = with_profile(results[0], profile_row(0, 8, disturbed=REASON))
    assert all(detail.endswith(", disturbed") for _, detail in against(results)[1:])


def test_a_disturbed_row_is_marked_in_every_rendering(tmp_path: Path) -> None:
    """Markdown, page and terminal name the reason; the drawing has a hollow point and says what it is."""
    results = suite_with_a_disturbed_case()
    paths = write_report(tmp_path, results, "t", "")
    markdown, html = paths.markdown.read_text(), paths.html.read_text()
    out = io.StringIO()
    Console(file=out, width=400).print(TerminalTable(comparison_table(results)))
    for text in (markdown.replace("&#96;", "`"), html, out.getvalue()):
        assert "Disturbed, not ranked: linear" in text
        assert REASON in text
    assert "disturbed) |" in markdown
    # of the comparison and the cost the latency, of the cost the ratio too, and the CPU time
    assert len(re.findall(r'<td class="number disturbed( first)?"', html)) == 4
    figures = {figure.name: figure for figure in gather(tmp_path, results, "t", "", "").figures}
    assert "Hollow: disturbed, not ranked (linear)" in figures["pareto-latency"].caption
    assert "Hollow" not in figures["pareto-macs"].caption


@pytest.mark.parametrize("width", [60, 100])
def test_marks_fit_a_narrow_terminal(width: int) -> None:
    """A disturbed row of too few rounds, the longest mark there is, is whole within the terminal's width."""
    suite = make_suite()
    suite[1] = with_profile(suite[1], profile_row(1, 8, rounds=_rounds(1)[:4], disturbed=REASON))
    out = io.StringIO()
    Console(file=out, width=width).print(TerminalTable(comparison_table(suite)))
    assert " too few rounds, disturbed " in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_only_the_disturbed_point_is_hollow() -> None:
    """Of two cases one point is open once that case is disturbed, and none before."""
    suite = make_suite()
    drawn = [
        pareto_drawings([suite[0], with_profile(suite[1], profile_row(1, 8, disturbed=words))], ["latency"])
        for words in ("", REASON)
    ]
    assert [figure.svg.count('class="hollow"') for (figure,) in drawn] == [0, 1]


def test_rows_of_another_session_are_not_paired() -> None:
    """Their ratio is one of medians, and says so; nothing is called faster or slower."""
    results = make_suite()
    later = profile_row(1, 8, session="another session")
    results[1] = with_profile(results[1], later)
    text, detail = against(results)[1]
    medians = [results[i].measurement("latency_ms@8").value for i in (1, 0)]
    assert text == f"× {significant(medians[0] / medians[1], 3)}"
    assert detail == "not paired: measured in another session"
    assert against(results)[2][1].endswith(", slower")


def test_times_of_different_machines_are_not_compared() -> None:
    """Without a session in common a ratio needs both cases from the same environment."""
    elsewhere = make_result("b", 1, environment=ENVIRONMENT.model_copy(update={"cpu": "another"}))
    elsewhere = with_profile(elsewhere, profile_row(1, 8, session="another session"))
    assert against([make_result("a", 0), elsewhere], "a")[1] == ("–", "measured in another environment")


def test_the_baseline_is_softmax_where_there_is_one() -> None:
    """Else it is the first case; a resolution at which it was not timed is named."""
    suite = make_suite()
    assert against([suite[2], suite[0], suite[1]])[1] == ("–", "the baseline")
    assert against([suite[2], suite[1]], "focused")[0] == ("–", "the baseline")
    skipped = profile_row(0, 8, rounds=[], status="skipped", reason="out of memory")
    kept = [m for m in suite[0].measurements if not m.name.startswith(("latency", "cpu_time"))]
    softmax = with_profile(suite[0].model_copy(update={"measurements": kept}), skipped)
    found = cost_table([softmax, suite[1]])
    assert cells(found, "Latency")[0] == Cell(detail="skipped: out of memory")
    assert against([softmax, suite[1]]) == [("–", ""), ("–", "softmax has no latency here")]


def test_results_of_the_first_format_claim_no_interval(tmp_path: Path) -> None:
    """They are read and shown, with words in place of an interval and of pairs."""
    path = tmp_path / "results.jsonl"
    for result in make_suite()[:2]:
        append_result(path, without_rounds(result))
    results = read_results(path)
    assert [result.format for result in results] == [1, 1]
    for table in (comparison_table(results), cost_table(results)):
        assert table is not None
        assert [cell.detail for cell in cells(table, "Latency")][:2] == ["", ""]
        assert cells(table, "Latency")[0].text != "–"
        assert any("samples of one round are not independent" in note for note in table.notes)
    assert cells(cost_table(results), "Rounds")[0].detail.endswith(" samples")
    assert against(results)[1][1] == "not paired: no rounds kept"
    assert [c.title for c in comparison_table(results).columns if "memory" in c.title] == ["Peak memory"]


def test_results_of_both_formats_stand_in_one_report() -> None:
    """A new case beside old ones has its interval, they have none, and no pair is made up."""
    suite = make_suite()
    results = [without_rounds(suite[0]), suite[1]]
    assert [bool(cell.detail) for cell in cells(cost_table(results), "Latency")] == [False, True]
    assert against(results)[1][1] == "not paired: no rounds kept"
    titles = [c.title for c in comparison_table(results).columns if "memory" in c.title]
    assert titles == ["Live memory", "Peak memory"]


def test_live_memory_is_the_models_and_the_process_stands_beside() -> None:
    """The comparison shows the live one, the cost table all, each with its unit and definition."""
    results = make_suite()
    table = cost_table(results)
    assert table is not None
    shown = {c.title: c.unit for c in table.columns if "memory" in c.title}
    assert shown == {"Live memory": "MiB", "Extra memory": "MiB", "Peak memory": "MiB"}
    assert [c.title for c in comparison_table(results).columns if "memory" in c.title] == ["Live memory"]
    assert [c.best for c in cells(comparison_table(results), "Live memory")][:2] == [True, False]
    told = dict(definitions(results))
    assert "sizes of the tensors" in told["Live memory"]
    assert set(shown) <= set(told)


def test_an_interval_over_rounds_is_none_over_images() -> None:
    """The note on intervals over images stands only where a quality has one."""
    results = make_suite()
    assert all(m.interval for r in results if (m := r.measurement("latency_ms@8")))
    assert not any("over images" in note for note in comparison_table(results).notes)


def test_disturbed_values_have_no_rank() -> None:
    """A rank correlation is one over the cases that may be ranked."""
    losses = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.01)
    results = [
        with_measurement(
            make_result(f"case {i}", i),
            Measurement(name="held_out_loss", values=[loss], disturbed=REASON if i == 6 else ""),
        )
        for i, loss in enumerate(losses)
    ]
    assert (
        dict(at_a_glance(results))["Held-out loss against FD-digits"] == "rank correlation 1.00 over 6 rows"
    )
