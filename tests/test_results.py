"""results.jsonl: append-only, whole lines, readable after a crash."""

from __future__ import annotations

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
