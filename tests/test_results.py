"""results.jsonl: append-only, whole lines, readable after a crash."""

from __future__ import annotations

import json
import math

import pytest

from attnbench.errors import UserInputError
from attnbench.results import Measurement, Result, append_result, environment, read_results


def result(case_id, **fields):
    return Result(
        case_id=case_id, suite="s", label=case_id, status="ok", environment=environment("cpu", 1), **fields
    )


def test_a_stump_is_cut_before_the_next_line(tmp_path):
    """A writer that died in the middle of a line costs that line only, also for the next writer."""
    path = tmp_path / "results.jsonl"
    append_result(path, result("a"))
    append_result(path, result("b"))
    path.write_bytes(path.read_bytes()[:-100])
    assert [r.case_id for r in read_results(path)] == ["a"]
    append_result(path, result("c"))
    assert [r.case_id for r in read_results(path)] == ["a", "c"]


def test_not_a_number_survives(tmp_path):
    """A NaN or infinite measurement is read back as it was."""
    measured = [Measurement(name="x", values=[math.nan, math.inf])]
    append_result(tmp_path / "r.jsonl", result("a", measurements=measured))
    values = read_results(tmp_path / "r.jsonl")[0].measurements[0].values
    assert math.isnan(values[0])
    assert values[1] == math.inf


def test_a_bad_line_in_the_middle_names_itself(tmp_path):
    """Anything else that is no result is an error with file and line."""
    path = tmp_path / "results.jsonl"
    append_result(path, result("a"))
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserInputError, match=r"results\.jsonl:1: not a result"):
        read_results(path)


def test_nothing_measured_is_nan():
    """A measurement without values has no median."""
    assert math.isnan(Measurement(name="x", values=[]).value)


@pytest.mark.parametrize(
    ("number", "unknown"),
    [(1, ["rounds", "clean_rounds", "session", "disturbed", "round_processes"]), (2, ["round_processes"])],
)
def test_earlier_formats_are_read(tmp_path, number, unknown):
    """A line of format 1, which knows no rounds, or 2 is read as such; new lines behind it have format 3."""
    path = tmp_path / "results.jsonl"
    timed = Measurement(name="latency_ms@8", unit="ms", values=[2.0, 2.5, 2.25], n=3)
    old = json.loads(result("a", measurements=[timed]).model_dump_json()) | {"format": number}
    for name in unknown:
        del old["measurements"][0][name]
    path.write_text(json.dumps(old) + "\n")
    append_result(path, result("b"))
    first, second = read_results(path)
    assert (first.format, second.format) == (number, 3)
    assert (first.measurements[0].values, first.measurements[0].rounds) == ([2.0, 2.5, 2.25], [])


@pytest.mark.parametrize("unknown", [4, 0, "2", None])
def test_another_format_is_refused_with_those_that_are_read(tmp_path, unknown):
    """The message has the place, the format found, the formats read, and what to do."""
    path = tmp_path / "results.jsonl"
    line = json.loads(result("a").model_dump_json()) | {"format": unknown}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserInputError) as error:
        read_results(path)
    assert str(error.value) == (
        f"{path}:1: format {unknown!r}, this attnbench reads 1, 2 and 3; use the version that wrote it, or "
        "remove the line"
    )


def test_rounds_survive_and_each_says_whether_it_was_clean(tmp_path):
    """Rounds of unequal length are read back as they were; a round without its flag is a damaged line."""
    path = tmp_path / "results.jsonl"
    timed = Measurement(
        name="latency_ms@8",
        values=[2.25],
        rounds=[[2.0, 2.5], [9.0]],
        clean_rounds=[True, False],
        session="s",
    )
    append_result(path, result("a", measurements=[timed]))
    assert read_results(path)[0].measurements == [timed]
    lost = json.loads(result("b", measurements=[timed]).model_dump_json())
    lost["measurements"][0]["clean_rounds"] = [True]
    path.write_text(json.dumps(lost) + "\n")
    with pytest.raises(UserInputError, match="1 clean_rounds for 2 rounds"):
        read_results(path)
