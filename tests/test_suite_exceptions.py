"""Exceptions of a suite: what they set, for whom, and every way to write them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_registry import SMALL, errors, imagined_registry, load

from attnbench import plugins
from attnbench.errors import SuiteError

MATRIX = "matrix: {model.attention: [softmax, linear]}\n"
RULE = "exceptions: [{when: {%s}, set: {%s}, reason: unstable otherwise}]\n"


@pytest.fixture(autouse=True)
def _imagined_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = imagined_registry()
    monkeypatch.setattr(plugins, "registry", lambda: registry)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, so that errors show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_exception_sets_what_it_says_where_it_holds(here: Path) -> None:
    """Only the cell that matches changes, and it carries the reason; a list of values is any of them."""
    rule = RULE % ("model.attention.name: [linear, agent]", "train.precision: bf16, train.steps: 7")
    softmax, linear = load(here, SMALL + MATRIX + rule)
    assert (softmax.train.precision, softmax.exceptions) == ("fp32", ())
    assert (linear.train.precision, linear.train.steps) == ("bf16", 7)
    assert linear.exceptions == ("train.precision = 'bf16', train.steps = 7 (unstable otherwise)",)


@pytest.mark.parametrize(
    ("when", "sets", "line"),
    [
        ("model.atention: linear", "train.steps: 7", "exceptions[0].when.model.atention: names no setting"),
        ("model.depth: 4", "train.stpes: 7", "exceptions[0].set.train.stpes: names no setting"),
        ("model.attention.name: agent", "train.steps: 7", "exceptions[0].when: holds for no cell"),
        (
            "model.attention.name: linear",
            "train.steps: x",
            "exceptions[0].set.train.steps: must be an integer",
        ),
    ],
)
def test_wrong_exceptions_are_one_line_each(here: Path, when: str, sets: str, line: str) -> None:
    """A name that is no setting, a condition nothing meets, a value of the wrong type."""
    (found,) = errors(here, SMALL + MATRIX + RULE % (when, sets))
    assert found.startswith("s.yaml:8:")
    assert line in found


def test_an_exception_needs_its_reason(here: Path) -> None:
    """A comparison whose cells differ in secret is no comparison."""
    text = SMALL + MATRIX + "exceptions: [{when: {model.depth: 4}, set: {train.steps: 7}}]\n"
    assert any("reason" in line for line in errors(here, text))


def test_an_override_of_what_an_exception_sets_is_refused(here: Path) -> None:
    """Otherwise it would be overruled in silence for some cells."""
    rule = RULE % ("model.attention.name: linear", "train.steps: 7")
    with pytest.raises(SuiteError, match=r"exceptions set train\.steps for some cells"):
        load(here, SMALL + MATRIX + rule, "train.steps=3")
    cases = load(here, SMALL + MATRIX + rule, "train.steps=3", "exceptions=[]")
    assert [case.train.steps for case in cases] == [3, 3]
