"""A store that an earlier attnbench wrote is read, not computed again, and its trainings go on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command_line import ROOT
from stored_runs import STILL_FINISHED

from attnbench.commands.suites import report
from attnbench.report.aspects import settings_of
from attnbench.report.compare.matching import settings
from attnbench.report.configurations import configurations
from attnbench.report.paper.conditions import scored_settings
from attnbench.results import read_results
from attnbench.running.runner import Listener, run
from attnbench.stages import prepare, train
from attnbench.storage.names import CHECKPOINT, DONE, RESULTS
from attnbench.storage.run_folders import case_of
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

STORED = ROOT / "tests" / "stored"


@pytest.fixture
def runs(tmp_path):
    """A runs folder with the stored files."""
    shutil.copytree(STORED, tmp_path / "runs")
    return tmp_path / "runs"


def refuse(case, store, device, progress):
    """An executor that must not be needed."""
    raise AssertionError(f"{case.label} was computed again")


def test_a_finished_suite_is_not_computed_again(runs):
    """Keys of data, model, attention code and settings are what they were; so are all measurements.

    Of what is still finished, that is.
    """
    lines = map(json.loads, (runs / "stored" / RESULTS).open())
    before = {line["case_id"]: line for line in lines if line["label"] == "softmax"}
    outcome = run(
        load_suite(runs / "stored.yaml", STILL_FINISHED),
        runs,
        executor=refuse,
        listener=Listener(notice=lambda _: None),
    )
    assert (outcome.computed, outcome.exit_code) == (0, 0)
    assert [result.case_id for result in outcome.results] == list(before)
    for result in outcome.results:
        old = before[result.case_id]
        kept = {m.name: m.values for m in result.measurements}
        assert kept == {m["name"]: m["values"] for m in old["measurements"]}
        # the profile has more settings since; the id holds what they stand for
        asked, then = ({**case, "profile": None} for case in (result.case, old["case"]))
        assert (result.label, asked, result.curves["loss"]) == (
            old["label"],
            then,
            [tuple(point) for point in old["curves"]["loss"]],
        )
    assert outcome.report.html.is_file()


def test_attentions_that_round_differently_since_are_trained_anew(runs):
    """Linear attention adds up in blocks: what an earlier version trained is not taken for its own."""
    cases = load_suite(runs / "stored.yaml").cases
    read = {case.label: (runs / "store" / "train" / case.key("train") / DONE).is_file() for case in cases}
    assert read == {"softmax": True, "linear": False, "dydila(mode=token)": False}


def test_its_trainings_are_used_and_its_samples_are_not(runs):
    """Without asking for the noise of that version: new samples and scores, in folders of their own."""
    store = runs / "store"
    then = load_suite(runs / "stored.yaml", ["sample.noise=ziggurat"]).cases
    for old, new in zip(then, load_suite(runs / "stored.yaml").cases, strict=True):
        assert (new.sample.noise, old.id != new.id) == ("box-muller", True)
        for stage, kept in {"prepare": True, "train": True, "sample": False, "evaluate": False}.items():
            assert (old.key(stage) == new.key(stage)) == kept
            if old.label == "softmax":  # the others are trained anew, too
                assert (store / stage / old.key(stage) / DONE).is_file()


def test_its_cases_are_compared_by_the_noise_they_had(runs):
    """Settings that name no noise are of that version, wherever they are read."""
    (result, *_) = read_results(runs / "stored" / RESULTS)
    assert "noise" not in result.case["sample"]
    case = case_of(runs / "stored", result)
    assert (case.sample.noise, case.model_dump(mode="json")["sample"]) == ("ziggurat", result.case["sample"])
    assert (runs / "store" / "sample" / case.key("sample") / DONE).is_file()
    for found in (
        dict(settings_of(result)),
        scored_settings(result.case),
        settings(configurations([result])[0]),
    ):
        assert found["sample.noise"] == "ziggurat"


def test_its_report_is_written_from_the_results_alone(runs, capsys):
    """`attnbench report` reads the lines of an earlier version."""
    report("stored", runs)
    assert "dydila(mode=token)" in capsys.readouterr().out


def test_an_unfinished_training_goes_on(runs):
    """A checkpoint of an earlier version is continued, to the loss that it had there without a stop."""
    (case,) = load_suite(runs / "stored.yaml", ["matrix.model.attention=[softmax]", "seed=1"]).cases
    told = []
    workspace = Workspace(
        root=runs / "store", device=torch.device("cpu"), progress=lambda *words: told.append(words)
    )
    assert (runs / "store" / "train" / case.key("train") / CHECKPOINT).is_file()
    prepare.run(case, workspace)
    output = train.run(case, workspace)
    assert min(done for stage, done, _, _ in told if stage == "train") > 10
    # the mean of 20 losses in fp32; another processor rounds other sums
    assert output.curves["loss"] == [(20.0, pytest.approx(1.659185254573822, rel=1e-4))]
