"""Settings that ruin a training without an error are warned of, with the number, before and after it."""

from __future__ import annotations

import re

import pytest
import torch
from command_line import attnbench_here
from report_cases import make_result
from runner_cases import TINY, tiny_suite

from attnbench.errors import SuiteError
from attnbench.report.sections import warnings
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import Listener, run
from attnbench.specs import TrainSpec
from attnbench.stages import prepare, train
from attnbench.storage.names import STORE
from attnbench.storage.store import Workspace
from attnbench.storage.trainings import finished_shorter, finished_trainings
from attnbench.suite.loading import list_suites, load_suite


def test_an_average_that_is_its_start_is_warned_of_with_its_share():
    """0.9999^500 = 0.951: the default decay of DiT over a short training."""
    (said,) = TrainSpec(steps=500).warnings()
    assert said.startswith("train.ema_decay 0.9999: after train.steps 500, the average that is sampled from")
    assert "95 % its start, random weights (0.9999^500 = 0.951)" in said
    assert "a decay of 0.99," in said


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"steps": 500, "ema_decay": 0.9999}, 0.9999**500),
        ({"steps": 3, "ema_decay": 0.5}, 0.125),
        ({"steps": 1, "ema_decay": 0.9999, "ema_warmup": True}, 0.1),
        ({"steps": 2, "ema_decay": 0.15, "ema_warmup": True}, 0.1 * 0.15),
    ],
)
def test_the_share_is_the_product_of_the_decays(settings, share):
    """As `WeightAverage.update` applies them."""
    spec = TrainSpec(**settings)
    assert spec.start_left_in(spec.ema_decay) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"extra_ema_decays": [0.99999]}, r"extra_ema_decays 0\.99999.* 37 % its start"),
        ({"steps": 500, "init_from": "x"}, r"its start, the weights of train\.init_from"),
        ({"warmup_steps": 200_000}, r"warmup_steps 200,000 .*ends at 50 % of train\.lr"),
        ({"lr": 0.1}, r"train\.lr 0\.1: .*set 1e-4"),
    ],
)
def test_other_settings_that_ruin_a_training(settings, said):
    """Each is one sentence with the number and what to set."""
    (warning,) = TrainSpec.model_validate({"steps": 100_000, "ema_decay": 0.999} | settings).warnings()
    assert re.search(said, warning)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps": 50_000},  # 0.7 % of the start are left
        {"steps": 400, "ema_decay": 0.99},
        {"steps": 20, "ema_warmup": True},
        {"steps": 10, "ema_decay": 0.0, "warmup_steps": 10},
        {"steps": 100, "ema_decay": 0.9, "log_every": 1000, "held_out_every": 1000, "lr": 4e-3},
    ],
)
def test_usual_settings_are_not_warned_of(settings):
    """A warning that comes always is read never."""
    assert list(TrainSpec(**settings).warnings()) == []


@pytest.mark.parametrize("name", [row.name for row in list_suites()])
def test_shipped_suites_need_no_warning(name):
    """They are what people copy."""
    assert load_suite(name).warnings == {}


def test_warnings_name_the_cases_they_are_for(tmp_path):
    """One warning for the cases of one setting."""
    loaded = tiny_suite(tmp_path, "steps", "matrix.train.steps=[1,8]", "train.log_every=1")
    ((warning, labels),) = loaded.warnings.items()
    assert "0.5^1 = 0.500" in warning
    assert len(labels) == 2 < len(loaded.cases)


def test_validate_and_plan_warn_and_succeed(tmp_path):
    """On stderr of `validate`, below the table of `plan`; the exit code stays 0."""
    (tmp_path / "mine.yaml").write_text(TINY.replace("ema_decay: 0.5", "ema_decay: 0.9999"))
    checked = attnbench_here("validate", "mine.yaml", cwd=tmp_path)
    planned = attnbench_here("plan", "mine.yaml", cwd=tmp_path)
    assert (checked.returncode, planned.returncode) == (0, 0)
    assert checked.stdout == "tiny: valid, 2 cases\n"
    for said in (checked.stderr, planned.stdout):
        words = " ".join(said.split())
        assert "warning: every case: train.ema_decay 0.9999" in words
        assert "(0.9999^8 = 0.999)" in words


def test_run_warns_before_it_trains_and_so_does_the_report(tmp_path):
    """Two attentions whose averages are both their zero-initialised start score alike: the reader is told."""
    loaded, told = tiny_suite(tmp_path, "start", "train.ema_decay=0.9999", "train.steps=2"), []

    def finished(result, cached):
        told.append("finished a case")

    outcome = run(
        loaded,
        tmp_path / "runs",
        device="cpu",
        executor=run_inline,
        listener=Listener(notice=told.append, finished=finished),
    )
    assert told[0].startswith("every case: train.ema_decay 0.9999")
    assert "finished a case" in told[1:]
    report = outcome.report.markdown.read_text()
    assert "0.9999^2 = 1.000" in report
    assert "softmax, linear" in next(line for line in report.splitlines() if "0.9999^2" in line)


def test_the_report_warns_of_results_of_any_age():
    """Settings that were no option yet stand at what was computed then."""
    assert not any("ema_decay" in said for said in warnings([make_result("old", case={"seed": 1})]))
    short = {"seed": 1, "train": {"steps": 500, "forgotten_option": 1}}
    assert any("0.9999^500 = 0.951" in said for said in warnings([make_result("short", case=short)]))


def test_more_steps_of_a_finished_training_are_announced(tmp_path):
    """A finished training of 8 steps is gone on from by one of 12; `plan` and `validate` say so."""
    short, long = (
        tiny_suite(tmp_path, "grows", f"train.steps={steps}", "matrix.model.attention=[softmax]")
        for steps in (8, 12)
    )
    store = tmp_path / "runs" / STORE

    def shorter(suite):
        found = finished_shorter(suite.cases[0], store, finished_trainings(store))
        return None if found is None else found.train.steps

    assert shorter(long) is None
    workspace = Workspace(root=store, device=torch.device("cpu"))
    prepare.run(short.cases[0], workspace)
    train.run(short.cases[0], workspace)
    assert shorter(long) == 8
    assert shorter(short) is None
    other = tiny_suite(tmp_path, "grows", "train.steps=12", "seed=5", "matrix.model.attention=[softmax]")
    assert shorter(other) is None
    command = ("grows.yaml", "-o", "train.steps=12", "-o", "matrix.model.attention=[softmax]")
    checked = attnbench_here("validate", *command, cwd=tmp_path)
    planned = attnbench_here("plan", *command, cwd=tmp_path)
    for said in (checked.stderr, planned.stdout):
        words = " ".join(said.split())
        assert "train.steps 12: goes on from the finished training of 8 steps; the other 4 are made" in words


@pytest.mark.parametrize("override", ["seed=9223372036854775808", "seed=[0,9223372036854775808]"])
def test_a_seed_beyond_the_generators_is_refused(override):
    """torch takes 64 bits: the largest seed is 2^63 - 1, and the error says so before anything runs."""
    with pytest.raises(SuiteError, match=r"seed.* must be less than 9223372036854775808"):
        load_suite("quick", [override])
    assert load_suite("quick", ["seed=9223372036854775807"]).cases[0].seed == 2**63 - 1
