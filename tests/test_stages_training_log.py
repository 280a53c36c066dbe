"""The training's log: what stands in it, what a resume leaves of it, and loggers that fail."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from stage_cases import StubModel, install, make_case, make_workspace

from attnbench.errors import UserInputError
from attnbench.hookspecs import hookimpl
from attnbench.plugins import load_plugins
from attnbench.stages import train
from attnbench.stages.training import log as training_log
from attnbench.stages.training.log import LogRecord, RecordedStatistics, TrainingLog, read_lines, scalars
from attnbench.stages.training.loss_curve import Timing


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_a_training_logs_loss_norm_rate_and_what_layers_record(monkeypatch, tmp_path):
    """Records stand at the log points; no clock is in them; choices become shares."""
    install(monkeypatch.setattr)
    forward = StubModel.forward

    def recording(self, x, t, y, *, recorder=None, loss_sink=None):
        if recorder is not None:
            recorder("blocks.0.kernel", torch.tensor([[0, 2], [2, 2]]))
            recorder("blocks.0.lambda", torch.tensor([1.0, 3.0]))
        return forward(self, x, t, y, loss_sink=loss_sink)

    monkeypatch.setattr(StubModel, "forward", recording)
    case = make_case(train={"warmup_steps": 8, "lr": 1e-3, "held_out_images": 0})
    output = train.run(case, make_workspace(tmp_path))
    records = lines(make_workspace(tmp_path).folder("train", case))
    assert [(r["step"], r["loss"]) for r in records] == [(s, v) for s, v in output.curves["loss"]]
    assert [r["lr"] for r in records] == [0.5e-3, 1e-3, 1e-3]
    assert all(r["grad_norm"] > 0 for r in records)
    assert records[0]["recorded"] == {
        "blocks.0.kernel": {"share": [0.25, 0.0, 0.75]},
        "blocks.0.lambda": {"mean": 2.0, "std": 1.0},
    }
    assert records[0].keys() == {"step", "loss", "grad_norm", "lr", "recorded"}


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    """Two micro-batches, one of which never chose the last expert, give the shares of both together."""
    whole, parts = RecordedStatistics(), RecordedStatistics()
    index, value, mask = torch.tensor([0, 1, 1, 3, 3, 3]), torch.randn(6), torch.rand(6, 2) < 0.5
    for part in (slice(0, 3), slice(3, 6)):
        parts("index", index[part])
        parts("value", value[part])
        parts("mask", mask[part])
    whole("index", index)
    whole("value", value)
    whole("mask", mask)
    assert parts.summary()["index"] == whole.summary()["index"]
    assert parts.summary()["mask"]["share"] == pytest.approx(mask.float().mean(0).tolist())
    assert parts.summary()["value"]["mean"] == pytest.approx(value.double().mean().item())
    assert parts.summary()["value"]["std"] == pytest.approx(value.double().std(correction=0).item())


def test_resume_cuts_the_log_to_the_checkpoint(tmp_path):
    """Records behind the checkpoint, also half a line, are gone; the clock's, too; nothing is noted."""
    log = TrainingLog(tmp_path, kinds=["jsonl"], label="case")
    log.write(LogRecord(step=1, loss=0.5))
    length = log.sync()
    for step in (1, 2):
        log.write_timing(Timing(step=step, steps=1, seconds=1, data_wait_s=0, is_log_point=True))
    log.write(LogRecord(step=2, loss=0.25))
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"step":3,"lo')
    again = TrainingLog(tmp_path, kinds=["jsonl"], label="case", step=1, log_bytes=length)
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert [t.step for t in again.timings] == [1]
    assert [t.step for t in read_lines(tmp_path / "timing.jsonl", Timing)] == [1]
    assert again.notes == []


def test_a_log_that_somebody_removed_is_noted(tmp_path):
    """A missing log does not stop a training, but its results say so."""
    assert "train.jsonl lost" in TrainingLog(tmp_path, kinds=["jsonl"], label="", log_bytes=9).notes[0]


def test_log_without_jsonl_writes_no_file(monkeypatch, tmp_path):
    """`log: []` leaves no train.jsonl and the same results."""
    install(monkeypatch.setattr)
    case, workspace = make_case(train={"log": []}), make_workspace(tmp_path)
    curve = train.run(case, workspace).curves["loss"]
    assert not (workspace.folder("train", case) / "train.jsonl").exists()
    assert case.key("train") == make_case().key("train")
    assert curve == train.run(make_case(), make_workspace(tmp_path / "other")).curves["loss"]


def test_missing_tensorboard_is_one_clear_error(monkeypatch, tmp_path):
    """Asking for event files without the package says what to install, before any step."""
    install(monkeypatch.setattr)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserInputError, match=r"pip install tensorboard, or set train.log: \[jsonl\]"):
        train.run(make_case(train={"log": ["tensorboard"]}), make_workspace(tmp_path))


def test_event_files_get_every_number_once(monkeypatch, tmp_path):
    """A writer receives each scalar under its own name, with the step, and is told where to go on."""
    written = []

    class Writer:
        def __init__(self, log_dir, purge_step):
            written.append(("purge", purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self): ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    log = TrainingLog(tmp_path, kinds=["tensorboard"], label="", step=3)
    log.write(LogRecord(step=4, loss=0.5, recorded={"a": {"share": [0.25, 0.75]}}, held_out_loss=[2.0]))
    assert written == [
        ("purge", 4),
        ("loss", 0.5, 4),
        ("held_out_loss/0", 2.0, 4),
        ("a/share/0", 0.25, 4),
        ("a/share/1", 0.75, 4),
    ]
    assert scalars(LogRecord(step=1)) == []


@pytest.fixture
def logger(monkeypatch):
    """Install a plugin that keeps what it is told, and raises where asked to."""

    class Logger:
        raises = False

        def __init__(self):
            self.told = []

        @hookimpl
        def attnbench_training_log(self, label, record):
            self.told.append((label, record))
            if self.raises:
                raise ConnectionError("the server is away")

    plugin = Logger()
    point = SimpleNamespace(name="mine", value="mine", dist=None, load=lambda: plugin)
    made = load_plugins(builtins=[], entry_points=lambda: [point])
    assert made.rows[0].status == "ok"
    monkeypatch.setattr(training_log, "registry", lambda: made)
    return plugin


def test_plugins_are_told_every_record(logger, tmp_path):
    """A plugin's logger gets the records that train.jsonl gets."""
    log = TrainingLog(tmp_path, kinds=["jsonl"], label="case")
    log.write(LogRecord(step=1, loss=0.5))
    log.write(LogRecord(step=2, loss=0.25))
    assert logger.told == [("case", record) for record in lines(tmp_path)]


def test_a_logger_that_fails_ends_itself_and_is_reported(logger, monkeypatch, tmp_path):
    """A logger that raises is not called again; the training ends well and its results name the error."""
    install(monkeypatch.setattr)
    logger.raises = True
    output = train.run(make_case(), make_workspace(tmp_path))
    warnings = next(m for m in output.measurements if m.name == "training_warnings")
    assert "ConnectionError: the server is away at step 4" in warnings.note
    assert len(logger.told) == 1
