"""Cases chosen by their labels, and the number of seeds, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from suite_registry import SMALL

from attnbench.errors import SuiteError, UserInputError
from attnbench.suite.choosing import choose_cases
from attnbench.suite.loading import load_suite
from attnbench.suite.overrides import absolute_override

pytestmark = pytest.mark.usefixtures("imagined_plugins")


@pytest.mark.parametrize(
    ("patterns", "labels"),
    [
        ([], ["softmax", "linear", "focused", "agent(num_agents=4)", "dydila-token", "dydila-map"]),
        (["dydila*"], ["dydila-token", "dydila-map"]),
        (["dydila-map", "s*", "softmax"], ["softmax", "dydila-map"]),  # in the suite's order, each once
        (["agent(num_agents=?)"], ["agent(num_agents=4)"]),
    ],
)
def test_patterns_choose_cases_in_the_suites_order(patterns: list[str], labels: list[str]) -> None:
    """As a shell's; the ids are those that the cases have without it."""
    suite = load_suite("quick")
    chosen = choose_cases(suite, patterns)
    assert [case.label for case in chosen.cases] == labels
    assert chosen.chosen == tuple(patterns)
    assert {case.id for case in chosen.cases} <= {case.id for case in suite.cases}


def test_a_label_with_brackets_chooses_itself(here: Path) -> None:
    """`[` begins a set of letters in a pattern, and stands in labels; an id is a name, too."""
    options = "{name: dydila, options: {window: [3, 5]}}"
    (here / "s.yaml").write_text(SMALL + f"matrix: {{model.attention: [softmax, {options}]}}\n")
    suite = load_suite("s.yaml")
    for pattern in ("dydila(window=[3, 5])", suite.cases[1].id):
        assert choose_cases(suite, [pattern]).cases == suite.cases[1:]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("dydlia*", " (did you mean 'dydila'?)"),
        ("softmx", " (did you mean 'softmax'?)"),
        ("", ""),
        ("Softmax", " (did you mean 'softmax'?)"),
        ("zzz*", ""),
    ],
)
def test_a_pattern_that_chooses_nothing_is_refused(pattern: str, meant: str) -> None:
    """With the labels there are and the nearest word of them; also beside one that chooses something."""
    with pytest.raises(UserInputError) as caught:
        choose_cases(load_suite("quick"), ["linear", pattern])
    assert str(caught.value) == (
        f"--case {pattern!r}: no case of quick has such a label{meant}; its cases: softmax; linear; focused; "
        "agent(num_agents=4); dydila-token; dydila-map"
    )


def test_seeds_make_a_case_each_and_share_the_ids_of_single_ones(here: Path) -> None:
    """0 to N - 1 in place of the suite's one; what ran with seed 0 is found again."""
    (here / "s.yaml").write_text(SMALL + "matrix: {model.attention: [softmax, linear]}\n")
    suite = load_suite("s.yaml", seeds=3)
    assert [case.label for case in suite.cases[:3]] == [
        "softmax · seed=0",
        "softmax · seed=1",
        "softmax · seed=2",
    ]
    assert suite.cases[3].id == load_suite("s.yaml").cases[1].id
    assert suite.cases[2].id == load_suite("s.yaml", ["seed=2"]).cases[0].id


def test_seeds_that_are_given_twice_are_refused(here: Path) -> None:
    """Nobody guesses which of them is meant."""
    (here / "s.yaml").write_text(SMALL)
    with pytest.raises(
        UserInputError, match=r"--seeds 3 and override 'seed=4' both give the seeds; leave one"
    ):
        load_suite("s.yaml", ["seed=4"], seeds=3)
    for count in (0, 10**9):
        said = rf"--seeds takes a number of seeds, 1 to 1000, got {count}"
        with pytest.raises(UserInputError, match=said):
            load_suite("s.yaml", seeds=count)
    (here / "s.yaml").write_text(SMALL + "seed: [7, 9]\n")
    with pytest.raises(
        SuiteError,
        match=r"^s\.yaml:7:1: seed: the suite lists its seeds \(7, 9\); leave --seeds 2 out, or give others",
    ):
        load_suite("s.yaml", seeds=2)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("train.lr=1e-4", "train.lr=1e-4"),
        ("data.path=in256", "data.path={here}/in256"),
        ("data.path=/in256", "data.path=/in256"),
        ("data.path='../in: 256'", 'data.path="{above}/in: 256"'),
        ("data.codec={path: vae}", 'data.codec={{"path": "{here}/vae"}}'),
        ("evaluate.weights=~/w.pth", "evaluate.weights=/home/somebody/w.pth"),
        ("matrix.data.path=[a, /b]", 'matrix.data.path=["{here}/a", "/b"]'),
        ("matrix={{train.init_from: [a]}}", 'matrix={{"train.init_from": ["{here}/a"]}}'),
        (
            "matrix.data=[{{name: prepared, path: a}}]",
            'matrix.data=[{{"name": "prepared", "path": "{here}/a"}}]',
        ),
        (
            "exceptions=[{{when: {{seed: 1}}, set: {{data.path: a}}, reason: r}}]",
            'exceptions=[{{"when": {{"seed": 1}}, "set": {{"data.path": "{here}/a"}}, "reason": "r"}}]',
        ),
        ("question=two\nlines", "question=two lines"),
        ("train.init_from=null", "train.init_from=null"),
    ],
)
def test_overrides_are_kept_as_any_folder_understands_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    """Relative paths become absolute; all else stays as it was typed, but for letters no line can show."""
    monkeypatch.setenv("HOME", "/home/somebody")
    text = given if "\n" in given or "{{" not in given else given.format()
    assert absolute_override(text) == kept.format(here=here, above=here.parent)
    assert absolute_override(kept.format(here=here, above=here.parent)) == kept.format(
        here=here, above=here.parent
    )


def test_a_suite_keeps_what_it_was_asked_for(here: Path) -> None:
    """For the record of its run."""
    (here / "s.yaml").write_text(SMALL)
    suite = choose_cases(load_suite("s.yaml", ["evaluate.weights=w.pth"], seeds=2), ["*seed=1"])
    asked = json.dumps([suite.overrides, suite.seeds, suite.chosen, [case.seed for case in suite.cases]])
    assert json.loads(asked) == [[f"evaluate.weights={here}/w.pth"], 2, ["*seed=1"], [1]]
