"""`attnbench.run_suite` and `attnbench.profile` from Python: settings as data, and what is told meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from runner_cases import TINY

import attnbench
from attnbench.errors import SuiteError, UserInputError
from attnbench.running import runner


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def ran(monkeypatch):
    """Stand in for the run itself: keeps what it was asked, and tells of one stage."""
    kept = SimpleNamespace()

    def run(suite, runs, *, device, executor, listener):
        kept.suite, kept.runs, kept.device, kept.executor = suite, runs, device, executor
        listener.stage_ended(suite.cases[0], "train 8 steps", 31.0)
        return kept

    monkeypatch.setattr(runner, "run", run)
    return kept


def test_overrides_are_a_mapping_or_texts(suite, ran, tmp_path):
    """Numbers, lists, mappings, None and paths mean what a suite's file means; small numbers stay exact."""
    asked = {
        "train.lr": 1e-05,
        "train.steps": 3,
        "train.init_from": None,
        "train.horizontal_flip": True,
        "matrix.model.attention": [{"name": "elu", "options": {"eps": 1e-7}}, "softmax"],
        "evaluate.weights": tmp_path / "w.pt",
    }
    attnbench.run_suite(suite, asked | {"evaluate.weights": None}, quiet=True)
    first, second = ran.suite.cases
    assert (first.train.lr, first.train.steps, first.train.horizontal_flip) == (1e-05, 3, True)
    assert (first.model.attention.options["eps"], second.label) == (1e-7, "softmax")
    attnbench.run_suite(suite, ["train.steps=4"], quiet=True)
    assert ran.suite.cases[0].train.steps == 4
    with pytest.raises(SuiteError, match="takes no file"):  # the path has arrived
        attnbench.run_suite(suite, asked, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("train.steps=3", "a mapping or several strings"),
        ({"train.lr": float("nan")}, "train.lr is nan"),
        ({"train.steps": object()}, "no suite file can say"),
    ],
)
def test_overrides_that_no_file_could_say(suite, overrides, told):
    """Which one, and what is allowed."""
    with pytest.raises(UserInputError, match=told):
        attnbench.run_suite(suite, overrides)


def test_a_device_is_chosen_as_on_the_command_line(suite, ran):
    """By name; a wrong one is an error before anything runs."""
    attnbench.run_suite(suite, device="cpu", runs="elsewhere", quiet=True)
    assert (ran.device, ran.runs) == ("cpu", Path("elsewhere"))
    with pytest.raises(UserInputError, match="tpu"):
        attnbench.run_suite(suite, device="tpu")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_is_not_silent(suite, ran, capsys, quiet):
    """Without a terminal each stage is a line on stderr, unless that is not wanted."""
    attnbench.run_suite(suite, quiet=quiet)
    told = capsys.readouterr()
    assert ("softmax: train 8 steps, 31 s" in told.err) is not quiet
    assert told.out == ""
