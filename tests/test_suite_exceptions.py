"""Exceptions of a suite: what they set, for whom, and every way to write them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_registry import SMALL, errors, load

from attnbench.errors import SuiteError

MATRIX = "matrix: {model.attention: [softmax, linear]}\n"
RULE = "exceptions: [{when: {%s}, set: {%s}, reason: unstable otherwise}]\n"


pytestmark = pytest.mark.usefixtures("imagined_plugins")


def test_an_exception_sets_what_it_says_where_it_holds(here: Path) -> None:
    """Only the cases on those places of the matrix change, and they carry the reason."""
    text = "matrix: {model.attention: [softmax, linear, dig], sample.guidance_scale: [1.0, 2.0]}\n"
    when = "model.attention: [linear, dig], sample.guidance_scale: 2.0"
    cases = load(here, SMALL + text + RULE % (when, "train.precision: bf16, train.steps: 7"))
    changed = [case.label for case in cases if case.train.steps == 7]
    assert changed == ["linear · guidance_scale=2.0", "dig · guidance_scale=2.0"]
    assert [case.label for case in cases if case.train.precision == "bf16"] == changed
    assert [case.label for case in cases if case.exceptions] == changed
    assert cases[3].exceptions == ("train.precision = 'bf16', train.steps = 7 (unstable otherwise)",)


def test_a_value_goes_by_its_label(here: Path) -> None:
    """A mapping of the matrix is named by the label that it has there, and in full; its name is no value."""
    axis = "{name: agent, options: {num_agents: 4}, label: few}"
    text = f"matrix: {{model.attention: [softmax, {axis}]}}\n"
    for named in ("few", axis):
        _, few = load(here, SMALL + text + RULE % (f"model.attention: {named}", "train.steps: 7"))
        assert few.train.steps == 7
    (found,) = errors(here, SMALL + text + RULE % ("model.attention: agent", "train.steps: 7"))
    assert "'agent' is not on that axis; its values: 'softmax', 'few'" in found


def test_nothing_is_no_label(here: Path) -> None:
    """`null` on an axis is the value null, and no mapping that has no label."""
    text = "matrix: {model.decoupled: [null, {decoder_depth: 1}]}\n"
    cases = load(here, SMALL + text + RULE % ("model.decoupled: null", "train.steps: 7"))
    assert [case.train.steps == 7 for case in cases] == [True, False]
    (found,) = errors(here, SMALL + text + RULE % ("model.decoupled: 5", "train.steps: 7"))
    assert "None" not in found


@pytest.mark.parametrize(
    ("when", "sets", "line"),
    [
        ("model.atention: linear", "train.steps: 7", "when.model.atention: is no axis of the suite's matrix"),
        ("model.depth: 4", "train.steps: 7", "is no axis of the suite's matrix; allowed: model.attention"),
        ("model.attention: agent", "train.steps: 7", "'agent' is not on that axis; its values: 'softmax', "),
        ("model.attention: true", "train.steps: 7", "true is not on that axis"),
        ("model.attention: linear", "train.stpes: 7", "exceptions[0].set.train.stpes: names no setting"),
        ("model.attention: linear", "train.steps: x", "set.train.steps: must be an integer, got 'x'"),
        ("model.attention: linear", "model.attention: agent", "varies with matrix.model.attention; give the"),
        ("", "train.steps: 7", "exceptions[0].when"),
        ("model.attention: linear", "", "exceptions[0].set"),
    ],
)
def test_wrong_exceptions_are_one_line_each(here: Path, when: str, sets: str, line: str) -> None:
    """Names of nothing, values of no case, settings that would belie a case's label, empty rules."""
    (found,) = errors(here, SMALL + MATRIX + RULE % (when, sets))
    assert found.startswith("s.yaml:8:")
    assert line in found


def test_two_exceptions_must_not_claim_one_setting(here: Path) -> None:
    """Else a report would give the reason of one and the value of the other."""
    rule = "{when: {model.attention: linear}, set: {train.lr: %s}, reason: so}"
    text = SMALL + MATRIX + f"exceptions: [{rule % 1e-3}, {rule % 2e-3}]\n"
    (line,) = errors(here, text)
    assert "exceptions[1].set.train.lr: exceptions[0].set.train.lr sets it for some of the same cases" in line


def test_exceptions_do_not_make_equal_cases_differ(here: Path) -> None:
    """Prose is no content: what runs the same is refused as the same."""
    text = "matrix: {model.attention: [linear, {name: linear, label: too}]}\n"
    rule = RULE % ("model.attention: linear", "train.precision: fp32")
    assert any("has the same content" in line for line in errors(here, SMALL + text + rule))


def test_an_override_may_shorten_the_axis(here: Path) -> None:
    """A stand-in run of some cases keeps the rules for those that are left."""
    rule = RULE % ("model.attention: [linear]", "train.steps: 7")
    (case,) = load(here, SMALL + MATRIX + rule, "matrix.model.attention=[softmax]")
    assert not case.exceptions


def test_an_overridden_matrix_says_which_option_drops_the_exceptions(here: Path) -> None:
    """`-o matrix=...` without the axis of an exception: both are named, and the option given helps."""
    text = SMALL + MATRIX + RULE % ("model.attention: linear", "train.steps: 7")
    override = "matrix={sample.guidance_scale: [1.0, 2.0]}"
    (line,) = errors(here, text, override)
    assert line.startswith("s.yaml:8:")
    assert f"exceptions[0].when.model.attention: is no axis of the matrix that override '{override}'" in line
    assert "add -o exceptions=[] to go without" in line
    assert len(load(here, text, override, "exceptions=[]")) == 2


def test_an_exception_needs_its_reason(here: Path) -> None:
    """A comparison whose cases differ in secret is no comparison."""
    text = SMALL + MATRIX + "exceptions: [{when: {model.attention: linear}, set: {train.steps: 7}}]\n"
    assert any("reason" in line for line in errors(here, text))


def test_an_override_of_what_an_exception_sets_is_refused(here: Path) -> None:
    """Otherwise it would be overruled in silence for some cases."""
    rule = RULE % ("model.attention: linear", "train.steps: 7")
    with pytest.raises(SuiteError, match=r"exceptions set train\.steps for some cases"):
        load(here, SMALL + MATRIX + rule, "train.steps=3")
    cases = load(here, SMALL + MATRIX + rule, "train.steps=3", "exceptions=[]")
    assert [case.train.steps for case in cases] == [3, 3]
