"""An error nobody expected: whose code it was, where its traceback lies, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from process_cases import digits_case

from attnbench import plugins
from attnbench.errors import DataError
from attnbench.stages import case as case_module
from attnbench.stages import evaluate, failures, prepare, sample, train
from attnbench.storage.store import StageOutput, Workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch, capsys):
    """Stages that do nothing, in a store of its own; what is printed of their errors is not shown."""
    for stage in (prepare, train, sample, evaluate):
        monkeypatch.setattr(stage, "run", lambda case, workspace: StageOutput())
    return Workspace(root=tmp_path / "store", device=torch.device("cpu"))


def failing(monkeypatch, error: BaseException) -> None:
    """Let the training raise an error from this file."""

    def fail(case, workspace):
        raise error

    monkeypatch.setattr(train, "run", fail)


def test_the_traceback_is_kept_until_the_stage_succeeds(workspace, monkeypatch):
    """The reason names stage, error, place and file; the file holds the traceback; success removes it."""
    case = digits_case()
    with monkeypatch.context() as patch:
        failing(patch, KeyError("class_3"))
        result = case_module.run_case(case, workspace)
    assert result.status == "failed"
    place = rf"raised at {re.escape(__file__)}:\d+: mend it there, then run the same command again"
    said = re.fullmatch(rf"train: KeyError: 'class_3'; {place}; traceback: (.*)", result.reason)
    assert said, result.reason
    kept = Path(said[1])
    assert kept.parent == workspace.folder("train", case)
    text = kept.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert text.rstrip().endswith("KeyError: 'class_3'")
    assert case_module.run_case(case, workspace).status == "ok"
    assert not kept.exists()


def test_an_error_of_a_plugin_names_it_and_its_file(workspace, monkeypatch):
    """Also where torch raised what the plugin's line has called."""
    record = plugins.Provided(
        record=None, plugin="mine", origin="mine 1.0", files=frozenset({Path(__file__)})
    )
    registry = plugins.Registry(backends={"mine": record})
    monkeypatch.setattr(failures, "registry", lambda: registry)

    def calls_torch(case, workspace):
        return torch.nn.functional.linear(torch.ones(2, 3), torch.ones(5, 4))

    monkeypatch.setattr(train, "run", calls_torch)
    reason = case_module.run_case(digits_case(), workspace).reason
    assert re.search(rf"raised in the plugin mine \(mine 1\.0\) at {re.escape(__file__)}:\d+: mend", reason)


def test_an_error_of_ours_asks_for_a_report(workspace, monkeypatch):
    """The innermost frame is attnbench's: nothing the user could mend."""
    monkeypatch.setattr(train, "run", lambda case, workspace: workspace.folder("train", None))
    reason = case_module.run_case(digits_case(), workspace).reason
    assert reason.startswith(
        "train: AttributeError: 'NoneType' object has no attribute 'key'; an error in attn"
    )
    assert re.search(r"at attnbench/storage/store\.py:\d+: please report it with the traceback", reason)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_too_little_memory_says_what_takes_less(workspace, monkeypatch, error):
    """Named are settings that change no result, and they exist."""
    failing(monkeypatch, error)
    reason = case_module.run_case(digits_case(), workspace).reason
    assert "train.activation_checkpointing: true" in reason
    assert {"activation_checkpointing", "grad_accumulation"} <= set(type(digits_case().train).model_fields)


def test_deliberate_errors_stay_as_they_are(workspace, monkeypatch):
    """They have their own next step, and leave no file."""
    failing(monkeypatch, DataError("no images; add some"))
    case = digits_case()
    assert case_module.run_case(case, workspace).reason == "train: no images; add some"
    assert not list((workspace.root / "train").rglob("error.txt"))


def test_a_traceback_that_cannot_be_kept_is_no_second_error(tmp_path):
    """The place is a file: the reason says so and what shows the traceback."""
    (tmp_path / "file").write_text("")
    reason = failures.in_words(ValueError("odd"), "sample", tmp_path / "file")
    assert reason.startswith("sample: ValueError: odd; ")
    assert "could not be kept" in reason
    assert "--inline" in reason
