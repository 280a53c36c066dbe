"""A training of more steps goes on from a finished one of fewer, and ends in the bits of one of all steps."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_cases import StubSource, install, make_case, make_workspace, trained_bits

from attnbench.errors import StorageError
from attnbench.running.schedule import shorter_trainings
from attnbench.stages import train
from attnbench.stages.training.trainer import Trainer
from attnbench.storage import trainings
from attnbench.storage.names import AVERAGED, CHECKPOINT, TIMING, TRAIN_LOG
from attnbench.storage.store import read_output
from attnbench.storage.trainings import finished_shorter, finished_trainings


@pytest.fixture
def steps_made(monkeypatch):
    """The steps that trainings make, with the stubs in the stages."""
    install(monkeypatch.setattr)
    make_step, made = Trainer._step, []

    def counted(self, step, *rest):
        made.append(step)
        return make_step(self, step, *rest)

    monkeypatch.setattr(Trainer, "_step", counted)
    return made


def trained(root, steps, told=None, **train_settings):
    case = make_case(train={"steps": steps, **train_settings})
    workspace = make_workspace(root)
    if told is not None:
        workspace = type(workspace)(
            root=root, device=workspace.device, progress=lambda *event: told.append(event[3])
        )
    train.run(case, workspace)
    return case


def test_only_the_further_steps_are_made(steps_made, tmp_path):
    """From 4 over 7 to 10 steps: each is made once; weights, average and moments are those of 10 at once."""
    whole = trained(tmp_path / "whole", 10)
    steps_made.clear()
    told = []
    for steps in (4, 7, 10):
        case = trained(tmp_path / "parts", steps, told)
    assert steps_made == list(range(10))
    assert [note for note in told if "goes on" in note] == [
        "case: goes on from the finished training of 4 steps",
        "case: goes on from the finished training of 7 steps",
    ]
    at_once, in_parts = (trained_bits(tmp_path / name, whole) for name in ("whole", "parts"))
    assert at_once[0].keys() == in_parts[0].keys()
    for name, tensor in at_once[0].items():
        assert torch.equal(tensor, in_parts[0][name]), name
    # the curve has points of its own where the shorter trainings ended
    assert [step for step, _ in at_once[1]] == [4, 8, 10]
    assert [step for step, _ in in_parts[1]] == [4, 7, 8, 10]
    folder = make_workspace(tmp_path / "parts").folder("train", case)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in make_workspace(tmp_path / "whole").folder("train", whole).iterdir()
    )
    timed = {m.name: m for m in read_output(folder).measurements}["train_time_s"]
    assert (timed.n, timed.note) == (
        10, "the first 7 steps were made by the training of 7, wherever it ran"
    )  # fmt: skip
    assert len((folder / TRAIN_LOG).read_text().splitlines()) >= 4
    assert (folder / TIMING).read_text().count("\n") >= 4


@pytest.mark.parametrize(
    ("first", "then"),
    [({"lr": 1e-3}, {"lr": 2e-3}), ({"batch_size": 4}, {"batch_size": 2}), ({}, {"ema_decay": 0.5})],
)
def test_another_training_is_not_gone_on_from(steps_made, tmp_path, first, then):
    """Whatever else differs makes all steps anew."""
    trained(tmp_path, 3, **first)
    steps_made.clear()
    trained(tmp_path, 5, **then)
    assert steps_made == [0, 1, 2, 3, 4]


def test_a_longer_one_gives_nothing_to_a_shorter(steps_made, tmp_path):
    """Weights after fewer steps are not kept: the shorter training is made."""
    trained(tmp_path, 5)
    steps_made.clear()
    trained(tmp_path, 3)
    assert steps_made == [0, 1, 2]


def test_own_checkpoints_come_first(monkeypatch, steps_made, tmp_path):
    """A training that was stopped goes on from its own checkpoint, though a shorter one has been finished."""
    trained(tmp_path, 2)

    def strike():
        if len(steps_made) > 6:
            raise RuntimeError("struck")

    install(monkeypatch.setattr, StubSource(before_batch=strike))
    with pytest.raises(RuntimeError, match="struck"):
        trained(tmp_path, 30, checkpoint_every=2)
    case = make_case(train={"steps": 30})
    assert finished_shorter(case, tmp_path, finished_trainings(tmp_path)) is None
    install(monkeypatch.setattr)
    steps_made.clear()
    trained(tmp_path, 30, checkpoint_every=2)
    assert steps_made[0] >= 4


def test_the_checkpoint_before_a_damaged_one_comes_first(monkeypatch, steps_made, tmp_path):
    """Who moves a damaged checkpoint away, as its error says, goes on from the one before it."""
    trained(tmp_path, 2)

    def strike():
        if len(steps_made) > 12:
            raise RuntimeError("struck")

    install(monkeypatch.setattr, StubSource(before_batch=strike))
    with pytest.raises(RuntimeError, match="struck"):
        trained(tmp_path, 30, checkpoint_every=2)
    folder = make_workspace(tmp_path).folder("train", make_case(train={"steps": 30}))
    (folder / CHECKPOINT).unlink()
    install(monkeypatch.setattr)
    steps_made.clear()
    trained(tmp_path, 30, checkpoint_every=2)
    assert steps_made[0] >= 6


def test_a_finished_training_has_nothing_to_go_on_from(steps_made, tmp_path):
    """Though its checkpoint was deleted to save the disk: nothing is made, and nothing is announced."""
    trained(tmp_path, 2)
    long = trained(tmp_path, 5)
    (make_workspace(tmp_path).folder("train", long) / CHECKPOINT).unlink()
    assert finished_shorter(long, tmp_path, finished_trainings(tmp_path)) is None


def test_a_taught_training_makes_all_its_steps():
    """Its teacher may have been trained anew since: the steps before were taught by another."""
    taught = make_case(train={"steps": 9, "teacher": {"model": "somewhere"}})
    before = taught.model_copy(update={"train": taught.train.model_copy(update={"steps": 4})})
    assert finished_shorter(taught, Path("nowhere"), {before.key("train"): 4}) is None
    assert shorter_trainings({0: before, 1: taught}) == {}


def test_held_out_points_are_of_the_images_that_the_longer_training_measures(steps_made, tmp_path):
    """A point where the shorter one ended, on fewer images, is none of the longer one's curve."""
    trained(tmp_path, 4)
    case = trained(tmp_path, 10)
    curve = read_output(make_workspace(tmp_path).folder("train", case)).curves["held_out_loss"]
    assert [step for step, _ in curve] == [10]


def test_a_training_that_nobody_may_read_stops_no_other(steps_made, tmp_path, monkeypatch):
    """Of a store that several people share."""
    trained(tmp_path, 3)
    monkeypatch.setattr(trainings, "read_output", refuse)
    steps_made.clear()
    trained(tmp_path, 5)
    assert steps_made == [0, 1, 2, 3, 4]


def refuse(folder):
    raise StorageError(f"{folder}: Permission denied")


def test_a_damaged_shorter_training_is_told_of(steps_made, tmp_path):
    """Its checkpoint cannot be used: the next shorter one is gone on from, and the reason is said."""
    trained(tmp_path, 2)
    short = trained(tmp_path, 3)
    checkpoint = make_workspace(tmp_path).folder("train", short) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    steps_made.clear()
    told = []
    long = trained(tmp_path, 5, told)
    assert steps_made == [2, 3, 4]
    assert any("the finished training of 3 steps is not gone on from: " in note for note in told)
    checkpoint.unlink()
    assert make_workspace(tmp_path).folder("train", long).name in finished_trainings(tmp_path)
    assert short.key("train") not in finished_trainings(tmp_path)
    assert load_file(make_workspace(tmp_path).folder("train", long) / AVERAGED)
