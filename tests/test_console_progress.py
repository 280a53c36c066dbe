"""What a run says where no terminal is: a line per stage with its time, and one a minute in between."""

from __future__ import annotations

import pytest
import torch
from process_cases import digits_case
from runner_cases import tiny_suite

from attnbench.console import progress, run_listener
from attnbench.console.progress import Lines
from attnbench.results import Measurement, Result, environment, timestamp
from attnbench.running.runner import run
from attnbench.stages import case as case_module
from attnbench.stages import evaluate, prepare, sample, train
from attnbench.storage.store import STAGE_ENDED, StageOutput, Workspace, write_output


def test_a_line_a_minute():
    """What comes more often is not written; a line that was said for another reason counts."""
    now, said = [0.0], []
    lines = Lines(said.append, clock=lambda: now[0])
    for second in range(1, 131):
        now[0] = float(second)
        lines.progress("softmax: train", second, 1000, "loss 0.5")
        if second == 90:
            lines.say("here")
    assert said == ["softmax: train 60 of 1,000, loss 0.5", "here"]
    now[0] = 150.0
    lines.progress("linear: prepare", 0, 0, "comparing")
    assert said[-1] == "linear: prepare, comparing"


@pytest.mark.parametrize(("quiet", "lines"), [(False, 1), (True, 0)])
def test_stages_in_a_log(tmp_path, capsys, quiet, lines):
    """`attnbench run ... 2>log`: a stage's end reaches stderr with its time, through the run; not quietly."""
    suite = tiny_suite(tmp_path, "told")

    def execute(case, store, device, tell):
        tell(STAGE_ENDED, 41_000, 0, "train 1,000 steps")
        return Result(
            case_id=case.id,
            suite=case.suite,
            label=case.label,
            axes=case.axes,
            status="failed",
            case=case.model_dump(mode="json"),
            environment=environment("cpu"),
            created=timestamp(),
        )

    with run_listener(2, quiet=quiet) as listener:
        run(suite, tmp_path / "runs", device="cpu", executor=execute, listener=listener)
    written = capsys.readouterr()
    assert written.err.count("softmax: train 1,000 steps, 41 s\n") == lines
    assert "train" not in written.out


def test_a_minute_of_progress_in_a_log(capsys, monkeypatch):
    """The same holds for commands with one bar, such as profile."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.progress_bar("profile", quiet=False) as tell:
        tell(1, 4, "dit-s at 256 px: multiply-adds")
    assert capsys.readouterr().err == "profile 1 of 4, dit-s at 256 px: multiply-adds\n"


def test_a_case_tells_of_the_stages_it_ran(tmp_path, monkeypatch):
    """Those that were finished before are not told of."""
    found = {sample: [Measurement(name="sample_time_s", values=[1.0], n=1200)]}
    for stage in (train, sample, evaluate):
        monkeypatch.setattr(stage, "run", lambda *_, s=stage: StageOutput(measurements=found.get(s, [])))
    monkeypatch.setattr(prepare, "run", lambda case, workspace: StageOutput())
    told: list[tuple[str, int, int, str]] = []
    workspace = Workspace(
        root=tmp_path, device=torch.device("cpu"), progress=lambda *words: told.append(words)
    )
    case = digits_case()
    write_output(workspace.folder("prepare", case), StageOutput())
    case_module.run_case(case, workspace)
    ended = [note for stage, milliseconds, _, note in told if stage == STAGE_ENDED and milliseconds >= 0]
    assert ended == [f"train {case.train.steps} steps", "sample 1,200 images", "evaluate"]


def test_cases_side_by_side_in_a_log(capsys, monkeypatch):
    """When a minute is over, every case at work says how far it is; one that has ended says nothing more."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    one, two = (digits_case().model_copy(update={"label": label, "seed": n}) for n, label in enumerate("ab"))
    ended = Result(
        case_id=one.id, suite="s", label="a", status="ok", environment=environment("cpu"), created=timestamp()
    )
    with run_listener(2, quiet=False) as listener:
        listener.progress(one, "train", 1, 9, "")
        listener.progress(two, "train", 2, 9, "")
        listener.finished(ended, False)
        listener.progress(two, "sample", 3, 9, "")
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "a: train 1 of 9",
        "a: train 1 of 9",
        "b: train 2 of 9",
        "ok  a",
        "b: sample 3 of 9",
    ]
