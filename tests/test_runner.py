"""A whole suite: cases that fail beside cases that finish, resuming, full disks, killed processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from runner_cases import TINY, tiny_suite
from torch import nn

from attnbench.contract import AttentionBackend, MacCount
from attnbench.data import digits
from attnbench.errors import DataError, StorageError, SuiteError
from attnbench.plugins import Provided, registry
from attnbench.results import latest, read_results
from attnbench.running.executors.inline import run_inline
from attnbench.running.executors.process import run_in_process
from attnbench.running.plan import plan
from attnbench.running.runner import run
from attnbench.stages.interrupts import Stopped
from attnbench.storage.names import AVERAGED
from attnbench.suite.loading import load_suite


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One folder of runs for the whole module, so that the digit classifier is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def suite(tmp_path):
    """Make a suite with another name (and so another run folder)."""
    return partial(tiny_suite, tmp_path)


class Short(nn.Module):
    """Returns one token too few."""

    def forward(self, x, context):
        return x[:, 1:]


class Poisoned(nn.Module):
    """Turns to NaN at the fourth call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x, context):
        self.calls += 1
        return x * self.weight * (float("nan") if self.calls > 3 else 1.0)


class Crashing(nn.Module):
    """Raises something no one expects."""

    def forward(self, x, context):
        raise ZeroDivisionError("stranger's bug")


@pytest.fixture
def bad_backends(monkeypatch):
    """Register backends that break the contract in three ways."""
    for name, module in (("short", Short), ("poisoned", Poisoned), ("crashing", Crashing)):
        record = AttentionBackend(
            name=name,
            summary="",
            source="",
            build=lambda site, options, module=module: module(),
            macs=lambda site, options: MacCount(),
        )
        monkeypatch.setitem(registry().backends, name, Provided(record=record, plugin="bad", origin="test"))


def test_a_suite_runs_and_is_read_the_second_time(store, suite):
    """The first run computes every case and writes results and report; the second computes nothing."""
    first = run(suite("twice"), store, device="cpu", executor=run_inline)
    assert [r.status for r in first.results] == ["ok", "ok"]
    assert first.exit_code == 0
    page = first.report.html.read_text()
    assert page.count("data:image/png;base64") >= 2
    lines = (first.run_dir / "results.jsonl").read_text()

    def forbidden(*_):
        raise AssertionError("a finished case was computed again")

    second = run(suite("twice"), store, device="cpu", executor=forbidden)
    assert second.computed == 0
    assert (first.run_dir / "results.jsonl").read_text() == lines
    names = {m.name for m in second.results[0].measurements}
    assert {"class_accuracy", "final_loss", "params", "macs_paper@8", "macs_full@8", "FD-digits-cnn"} <= names


def test_bad_plugins_are_failed_rows_beside_finished_cases(store, suite, bad_backends):
    """A wrong shape, NaN and a crash each fail their own case with a reason; softmax is finished."""
    overrides = ["matrix.model.attention=[short, poisoned, crashing, softmax]"]
    outcome = run(suite("bad", *overrides), store, device="cpu", executor=run_inline)
    reasons = {r.label: r.reason for r in outcome.results}
    assert [r.status for r in outcome.results] == ["failed", "failed", "failed", "ok"]
    assert outcome.exit_code == 1
    assert (
        "Short in blocks.0.attn returned (1, 15, 32)" in reasons["short"]
    )  # of one image, where it is counted
    assert "blocks.0.attn" in reasons["poisoned"]
    assert "ZeroDivisionError: stranger's bug" in reasons["crashing"]
    assert "blocks.0.attn" in outcome.report.html.read_text()


def test_wrong_counts_fail_before_the_training(store, suite, monkeypatch):
    """A closed form that is wrong at one of the profile's sizes alone: nothing was trained for it."""
    linear = registry().backend("linear")

    def wrong(site, options):
        more = 100 * site.num_tokens * site.dim if site.num_tokens > 16 else 0
        return linear.macs(site, options) + MacCount(attention=more)

    record = dataclasses.replace(linear, name="miscounted", macs=wrong)
    provided = Provided(record=record, plugin="bad", origin="test")
    monkeypatch.setitem(registry().backends, "miscounted", provided)
    overrides = ("matrix.model.attention=[miscounted]", "profile.resolutions=[8, 16]")
    outcome = run(suite("miscounted", *overrides), store, device="cpu", executor=run_inline)
    (result,) = outcome.results
    assert result.reason.startswith("train: nothing was trained: at 16 px the counts of multiply-adds differ")
    assert "correct the backend's macs()" in result.reason
    (case,) = suite("miscounted", *overrides).cases
    assert not (store / "store" / "train" / case.key("train") / AVERAGED).exists()


def test_unsupported_is_skipped_with_its_reason(store, suite):
    """49 agents on 16 tokens: a skipped row; a suite in which nothing ran does not pass."""
    outcome = run(suite("skip", "matrix.model.attention=[agent]"), store, device="cpu", executor=run_inline)
    assert outcome.results[0].status == "skipped"
    assert "num_agents=49" in outcome.results[0].reason
    assert outcome.exit_code == 1


def test_changed_code_is_not_read_from_the_store(suite):
    """A backend whose source changed has another key: its old results are not reused."""
    case = suite("code").cases[0]
    changed = case.model_copy(update={"code": {"softmax": "another"}})
    assert case.code["softmax"]
    assert case.key("train") != changed.key("train")
    assert case.key("prepare") == changed.key("prepare")
    assert case.id != changed.id


def test_guidance_scales_share_one_training(suite):
    """Cases that differ downstream of training have one training key."""
    overrides = ["matrix.model.attention=[softmax]", "matrix.sample.guidance_scale=[1.0, 2.0]"]
    a, b = suite("shared", *overrides).cases
    assert a.key("train") == b.key("train")
    assert a.key("sample") != b.key("sample")


def test_results_show_the_settings_their_times_were_measured_with(store, suite):
    """What changes no result is read from the store with its times, and with the settings of then."""
    only = ["matrix.model.attention=[softmax]", "seed=32"]
    asked = ["train.activation_checkpointing=true", "train.checkpoint_every=4", "sample.batch_size=20"]
    first = run(suite("then", *only, *asked), store, device="cpu", executor=run_inline)
    again = run(suite("then", *only), store, device="cpu", executor=run_inline)
    assert (first.computed, again.computed) == (1, 0)
    for (result,) in (first.results, again.results):
        assert result.case["train"]["activation_checkpointing"] is True
        assert result.case["train"]["checkpoint_every"] == 4
        assert result.case["sample"]["batch_size"] == 20
    assert first.results[0].case == again.results[0].case
    assert "train.activation_checkpointing" in again.report.html.read_text()
    # a store of an attnbench that did not note them
    done = store / "store" / "sample" / suite("then", *only).cases[0].key("sample") / "done.json"
    output = json.loads(done.read_text())
    del output["computed_with"], output["checksum"]
    done.write_text(json.dumps(output))
    (result,) = run(suite("then", *only), store, device="cpu", executor=run_inline).results
    assert (result.status, result.case["sample"]["batch_size"]) == ("ok", 100)


def test_a_case_loads_its_data_once(store, suite, monkeypatch):
    """Every stage works on what `prepare` has checked; planning and profiling need the classes alone."""
    loaded, load = [], digits.load
    monkeypatch.setattr(digits, "load", lambda spec: loaded.append(spec) or load(spec))
    only = suite("once", "matrix.model.attention=[softmax]", "seed=31")
    assert run(only, store, device="cpu", executor=run_inline).exit_code == 0
    assert len(loaded) == 1
    assert run(only, store, device="cpu", executor=run_inline).computed == 0
    assert len(loaded) == 1


def test_a_missing_folder_stops_before_anything_runs(tmp_path, store):
    """The error names the setting and the override that mends it."""
    (tmp_path / "s.yaml").write_text(
        TINY.replace("data: digits", "data: {name: image-folder, path: nowhere, image_size: 8}").replace(
            "dim: 32", "dim: 32, in_channels: 3"
        )
    )
    with pytest.raises(
        DataError, match=r"data\.path: .*nowhere does not exist; name yours with -o data\.path="
    ):
        run(load_suite(tmp_path / "s.yaml"), store, device="cpu", executor=run_inline)


@pytest.mark.parametrize(
    ("weights", "said"), [("folder", "no weights file"), ("zeros.pth", "its SHA-256 is")]
)
def test_wrong_weights_stop_before_anything_runs(suite, tmp_path, weights, said):
    """A folder, or another file, in the place of a network's weights is not found out after the training."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "zeros.pth").write_bytes(bytes(3000))
    named = f"evaluate.weights={tmp_path / weights}"
    ready = suite("weights", "evaluate.extractor=inception-tf", named, "evaluate.class_accuracy=false")
    with pytest.raises(DataError, match=rf"evaluate\.weights: .*{said}"):
        run(ready, tmp_path / "runs", device="cpu", executor=run_inline)


def test_a_disk_too_small_stops_before_anything_runs(suite, tmp_path, monkeypatch):
    """Needed and free space are compared before the first step."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="this run needs about"):
        run(suite("full"), tmp_path / "runs", device="cpu", executor=run_inline)


def test_a_disk_that_fills_up_fails_the_case_and_keeps_the_rest(store, suite, monkeypatch):
    """No space left while training: one clear reason, and the same command finishes it later."""
    from attnbench.storage import tensor_files

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loaded = suite("nospace", "seed=5", "matrix.model.attention=[softmax]")
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        broken = run(loaded, store, device="cpu", executor=run_inline)
    assert broken.results[0].status == "failed"
    assert "No space left on device; free some space" in broken.results[0].reason
    assert "run the same command again" in broken.results[0].reason
    assert run(loaded, store, device="cpu", executor=run_inline).exit_code == 0


def test_a_checkpoint_cut_in_half_is_a_failed_row_that_names_it(store, suite):
    """Half a file of averaged weights: the sample stage names the file; the other case finishes."""
    loaded = suite("cut", "seed=6")
    run(loaded, store, device="cpu", executor=run_inline)
    folder = store / "store" / "train" / loaded.cases[0].key("train")
    weights = folder / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    for stage in ("sample", "evaluate"):
        (store / "store" / stage / loaded.cases[0].key(stage) / "done.json").unlink()
    for shard in (store / "store" / "sample" / loaded.cases[0].key("sample")).glob("*.npz"):
        shard.unlink()
    outcome = run(loaded, store, device="cpu", executor=run_inline)
    assert [r.status for r in outcome.results] == ["failed", "ok"]
    assert "ema.safetensors" in outcome.results[0].reason


def test_a_killed_case_is_a_failed_row_and_resumes(store, suite):
    """SIGKILL to a case's process: the row names the signal; the next run finishes the case."""
    loaded = suite(
        "killed", "seed=7", "train.steps=400", "train.checkpoint_every=5", "matrix.model.attention=[softmax]"
    )

    def kill_when_training(case, folder, device, progress):
        def kill(stage, done, total, note):
            if stage == "train" and done >= 10:
                children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
                for pid in {int(word) for path in children for word in path.read_text().split()}:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"attnbench.stages.case" in command:
                        os.kill(pid, signal.SIGKILL)

        return run_in_process(case, folder, device, kill)

    outcome = run(loaded, store, device="cpu", executor=kill_when_training)
    assert outcome.results[0].status == "failed"
    assert "killed by SIGKILL" in outcome.results[0].reason
    assert "run the same command again to go on from what is saved" in outcome.results[0].reason
    assert (store / "store" / "train" / loaded.cases[0].key("train") / "checkpoint.safetensors").exists()
    resumed = run(loaded, store, device="cpu", executor=run_in_process)
    assert resumed.exit_code == 0
    statuses = [r.status for r in read_results(outcome.run_dir / "results.jsonl")]
    assert statuses[0] == "failed"
    assert latest(read_results(outcome.run_dir / "results.jsonl"))[0].status == "ok"


def test_a_signal_stops_a_case_with_the_words_of_its_training(store, suite):
    """SIGTERM reaches the case's process, which saves; what it says of that is what the run ends with."""
    only = ["train.steps=100_000", "train.held_out_images=0", "matrix.model.attention=[softmax]"]
    (case,) = suite("stopped", *only).cases

    struck = []

    def strike(stage, done, total, note):
        if stage == "train" and done >= 10 and not struck:
            struck.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stop:
        run_in_process(case, store / "store", "cpu", strike)
    said = r"softmax: stopped at training step \d+ of 100000, which is saved; run the same command"
    assert re.match(said, stop.value.message)
    assert stop.value.number == signal.SIGTERM


def test_results_survive_a_crash_in_the_middle_of_a_line(store, suite):
    """A last line without its end is dropped; the whole ones are read."""
    outcome = run(suite("twice"), store, device="cpu", executor=run_inline)
    path = outcome.run_dir / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 3].splitlines()[0][:50])
    assert len(latest(read_results(path))) == 2
    path.write_text(whole)


def test_plan_runs_nothing_and_knows_what_is_finished(store, suite):
    """A finished case has nothing left; an unfinished one an estimate of time and disk."""
    run(suite("twice"), store, device="cpu", executor=run_inline)
    finished, other = plan([*suite("twice").cases[:1], *suite("later", "seed=9").cases[:1]], store / "store")
    assert finished.time_s == 0
    assert finished.disk_bytes == 0
    assert other.time_s > 0
    assert other.disk_bytes > 0
    assert not (store / "store" / "train" / other.case.key("train")).exists()


def test_every_line_is_json_with_its_environment(store, suite):
    """results.jsonl holds versions, hardware, git state and the whole case in every line."""
    outcome = run(suite("twice"), store, device="cpu", executor=run_inline)
    for line in (outcome.run_dir / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["environment"]["packages"]["torch"] == torch.__version__
        assert record["environment"]["cpu"]
        assert record["case"]["seed"] == 0


def test_a_damaged_record_means_not_finished(store, suite):
    """An empty done.json is no traceback: the stage is simply run again."""
    loaded = suite("damaged", "seed=8", "matrix.model.attention=[softmax]")
    run(loaded, store, device="cpu", executor=run_inline)
    (store / "store" / "evaluate" / loaded.cases[0].key("evaluate") / "done.json").write_bytes(b"")
    again = run(loaded, store, device="cpu", executor=run_inline)
    assert again.computed == 1
    assert again.exit_code == 0


def test_sizes_are_checked_before_training(store, suite):
    """More images per kernel-distance subset than samples: refused before a step is trained."""
    with pytest.raises(SuiteError, match="kd_subset_size is 5000, but there are 40 samples"):
        suite("sizes", "seed=10", "evaluate.kd_subset_size=5000", "matrix.model.attention=[softmax]")


def test_unreadable_images_are_named_in_the_report(tmp_path):
    """A file that is no image is left out, counted and named; the others are used."""
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(30):
            colour = (number * 8, 100, 255 if label == "a" else 0)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"not an image")
    overrides = [
        "data={name: image-folder, path: %s, image_size: 8}" % (tmp_path / "images"),
        "model.in_channels=3",
        "evaluate.class_accuracy=false",
        "sample.per_class=12",
        "matrix.model.attention=[softmax]",
    ]
    (tmp_path / "s.yaml").write_text(TINY)
    outcome = run(
        load_suite(tmp_path / "s.yaml", overrides), tmp_path / "runs", device="cpu", executor=run_inline
    )
    assert outcome.results[0].status == "ok", outcome.results[0].reason
    assert "broken.png" in outcome.report.html.read_text()
    assert outcome.results[0].measurement("unreadable_images").values == [1]


def test_a_runs_folder_that_is_a_file_is_refused(suite, tmp_path):
    """The error names the place and what is wrong with it."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        run(suite("afile"), tmp_path / "runs", device="cpu", executor=run_inline)
