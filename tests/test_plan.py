"""`attnbench plan` and `validate`: what a suite costs and lacks, honestly and once, as a run would say it."""

import math
from pathlib import Path

import pytest
from command_line import attnbench_here

from attnbench.errors import UserInputError
from attnbench.models.macs import closed_form_macs
from attnbench.profiling.rows import ProfileRow
from attnbench.running.machines import GPUS, PEAK_SHARE, Machine, assumed
from attnbench.running.needs import skips, taken_by_another
from attnbench.running.plan import plan, plan_profile
from attnbench.running.status import statuses
from attnbench.stages import profile as profile_stage
from attnbench.stages.profile import ProfileSession, missing_rows
from attnbench.storage.names import RUN
from attnbench.storage.records import write_record
from attnbench.storage.run_folders import RunRecord, write_run_record
from attnbench.suite.loading import load_suite

TWO = "matrix.model.attention=[softmax, linear]"
SLOW = Machine(macs_per_s={"fp32": 1e9, "bf16": 4e9}, said="a machine of a test")
FOLDER = (
    "name: mine\nquestion: Which?\nmodel: {recipe: tiny-dit-rgb, depth: 1, dim: 16, num_heads: 2}\n"
    "data: {name: image-folder, path: images, image_size: 16}\nevaluate: {extractor: digits-cnn}\n"
    "matrix: {model.attention: [softmax, linear]}\n"
)


def test_multiply_adds_of_a_pass_and_of_the_training(tmp_path):
    """A step is three forward passes of its batch; two cases that share a stage count it once."""
    suite = load_suite("quick", [TWO, "train.steps=10"])
    first, second = plan(suite.cases, tmp_path, SLOW)
    case = first.case
    assert first.macs == closed_form_macs(case.model, 8).full
    assert first.training_macs == 3 * 10 * case.train.batch_size * first.macs
    assert "prepare" in first.times_s
    assert "prepare" not in second.times_s
    assert first.times_s["evaluate"] is None  # no estimate is no zero
    assert first.times_s["train"] >= first.training_macs / 1e9


def test_the_profile_is_counted_until_its_rows_are_measured(tmp_path):
    """One row per model and side; a kept row of the session is not planned again."""
    suite = load_suite("quick", [TWO, "profile.resolutions=[8, 16]"])
    planned = plan(suite.cases, tmp_path, SLOW)
    before = plan_profile(planned, tmp_path, SLOW)
    assert (before.num_rows, before.num_cases) == (4, 2)
    assert before.time_s > 0
    contents = [profile_stage._content(case, 8) for case in suite.cases]
    path = profile_stage._session_path(tmp_path, contents, "cpu")
    row = ProfileRow(
        model=contents[0], resolution=8, tokens=16, mode="forward", scope="model", precision="fp32",
        batch_size=1, device="cpu", status="ok",
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    write_record(path, ProfileSession(rows=[row]))
    left = [(case.label, side) for case, side in missing_rows(suite.cases, tmp_path, "cpu")]
    assert sorted(left) == [("linear", 8), ("linear", 16), ("softmax", 16)]
    assert plan_profile(planned, tmp_path, SLOW).num_rows == 3


def test_an_assumed_machine_states_its_rates():
    """Half of the FLOP/s printed by the vendor, times a share, and where they are printed."""
    machine = assumed("H100x4")
    assert machine.count == 4
    assert math.isclose(machine.macs_per_s["bf16"], 0.5e12 * GPUS["h100"].bf16 * PEAK_SHARE)
    assert "989.4 TFLOP/s in bf16" in machine.said
    assert GPUS["h100"].source in machine.said
    assert math.isclose(assumed("a100@0.5").macs_per_s["fp32"], 0.25e12 * 19.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h100xx", "unknown GPU"),
        ("h200x0", "did you mean 'h200'"),
        ("h100@1.5", "above 0 and at most 1"),
        ("h100@.", "above 0 and at most 1"),
        ("4", "such as h100x4"),
        ("k80", "available: a100"),
    ],
)
def test_a_machine_that_is_none_is_said(text, says):
    """What is allowed stands in the error."""
    with pytest.raises(UserInputError, match=says):
        assumed(text)


def test_plan_shows_each_stage_and_gives_each_reason_once(tmp_path):
    """Folders without classes are no zero: what is assumed and what is missing are said, each once."""
    (tmp_path / "images").mkdir()
    (tmp_path / "mine.yaml").write_text(FOLDER)
    done = attnbench_here("plan", "mine.yaml", "--assume", "h100x2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("has no sub-folders") == 1
    assert "DataError" not in done.stdout
    assert "the data cannot be read yet: 100 classes are assumed" in done.stdout
    assert "on 2 GPUs, a case on each at a time" in done.stdout
    for stage, left in (("train", "2 cases"), ("sample", "2 cases"), ("profile", "2 rows")):
        assert any(line.split()[:3] == [stage, *left.split()] for line in done.stdout.splitlines())
    assert "0 s and 0 MiB" not in done.stdout


def test_nothing_that_can_run_is_no_sum(tmp_path, monkeypatch):
    """A backend that cannot be counted leaves no case: nothing is added up to 0 s."""

    def broken(case):
        raise UserInputError("its options do not fit")

    monkeypatch.setattr("attnbench.running.plan.closed_form", broken)
    said = attnbench_here("plan", "quick", "-o", TWO, cwd=tmp_path).stdout
    assert "2 cases, none of which can run yet" in said
    assert said.count("every case: its options do not fit") == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["-o", "data.path=elsewhere"], "does not exist; name yours with -o data.path=PATH"),
        ([], "has no sub-folders"),
        (["-o", "train.log=[tensorboard]"], "the package tensorboard is not installed"),
        (["-o", "evaluate.extractor=inception-tf", "-o", "evaluate.weights=w.pth"], "w.pth does not exist"),
    ],
)
def test_validate_says_what_a_run_would_refuse(tmp_path, monkeypatch, overrides, says):
    """Word for word what the run then says before anything trains."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "images").mkdir()
    (tmp_path / "mine.yaml").write_text(FOLDER)
    valid = attnbench_here("validate", "mine.yaml", *overrides, cwd=tmp_path)
    assert valid.returncode == 0, valid.stderr
    (line,) = [line for line in valid.stdout.splitlines() if says in line]
    refused = attnbench_here("run", "mine.yaml", *overrides, "--inline", "-q", cwd=tmp_path)
    assert refused.returncode == 2
    assert line.partition("every case: ")[2] in refused.stderr


def test_validate_knows_the_device(tmp_path):
    """As the run does: a device that is not there is exit code 2."""
    done = attnbench_here("validate", "quick", "--device", "cuda:99")
    assert done.returncode == 2
    assert "cuda:99" in done.stderr


def test_a_case_whose_backend_refuses_its_grid_is_told(tmp_path):
    """What a run skips after its data are ready is known before."""
    suite = load_suite(
        "quick", ["matrix.model.attention=[softmax, {name: agent, options: {num_agents: 64}}]"]
    )
    ((reason, labels),) = skips(suite.cases).items()
    assert labels == ["agent(num_agents=64)"]
    assert "agent at blocks.0" in reason


def test_two_files_of_one_name_are_kept_apart(tmp_path):
    """The second is refused while the first is there and says something else; a moved file is the same."""
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(FOLDER)
    other.write_text(FOLDER.replace("Which?", "Another?"))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    write_run_record(folder, RunRecord(suite="mine", source=str(one), case_ids=("a",)))
    assert taken_by_another(load_suite(one), folder) == ""
    said = taken_by_another(load_suite(other), folder)
    assert f"another suite called mine, {one}" in said
    assert said in attnbench_here("validate", other, cwd=tmp_path).stdout
    other.write_text(FOLDER)
    assert taken_by_another(load_suite(other), folder) == ""
    other.write_text(FOLDER.replace("Which?", "Another?"))
    one.unlink()
    assert taken_by_another(load_suite(other), folder) == ""
    (folder / RUN).write_text("{")  # the run renews it
    assert taken_by_another(load_suite(other), folder) == ""


def test_status_knows_a_profile_that_failed(monkeypatch):
    """All stages are finished, and the case is failed, as in its table and its result."""
    from attnbench.running import status
    from attnbench.running.executors.conversation import failed_result

    (case,) = load_suite("quick", ["matrix.model.attention=[linear]"]).cases
    monkeypatch.setattr(status, "finished_case", lambda case, store: object())
    failed = failed_result(case, "profile at 8 px: it was killed", "cpu")
    (found,) = statuses([case], Path(), {case.id: failed})
    assert (found.state, found.detail) == ("failed", failed.reason)
    fine = failed.model_copy(update={"reason": "train: killed"})  # which another run has finished since
    assert statuses([case], Path(), {case.id: fine})[0].state == "finished"


def test_a_batch_that_processes_cannot_divide_is_refused_first(tmp_path):
    """Before anything is prepared, and with exit code 2."""
    done = attnbench_here("run", "quick", "--processes", "3", "--inline", "-q", cwd=tmp_path)
    assert done.returncode == 2
    assert "no multiple of 3 processes x 1 micro-batches = 3" in done.stderr
    assert not (tmp_path / "runs").exists()
