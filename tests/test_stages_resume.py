"""Trainings that are stopped, killed or damaged go on to the same bytes, or say why not."""

import dataclasses
import multiprocessing
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from stage_cases import (
    StubSource,
    assert_same_training,
    install,
    make_case,
    make_workspace,
    start_training,
    train_here,
)

from attnbench.diffusion.noise import fork_rng
from attnbench.errors import CheckpointError
from attnbench.stages import train
from attnbench.stages.training import trainer as engine
from attnbench.stages.training.checkpoint import (
    ModelInput,
    load_averaged,
    load_checkpoint,
    previous_path,
)
from attnbench.storage.store import read_output


@pytest.fixture
def stubs(monkeypatch):
    install(monkeypatch.setattr)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_stopped_training_goes_on_bit_for_bit(stubs, tmp_path, objective):
    """Stopping inside a log interval and an epoch, and starting again, changes no bit and no loss."""
    case = make_case(train={"objective": objective})
    train.run(case, make_workspace(tmp_path / "whole"))
    workspace = make_workspace(tmp_path / "parts")
    source = StubSource()
    for stop in (2, 7):
        with fork_rng(workspace.device):
            model = train.initial_model(
                case, ModelInput(shape=source.shape, num_classes=3), torch.device("cpu")
            )
            trainer = engine.Trainer(case, workspace, model, source, flip=True)
            trainer.resume()
            trainer.train_until(stop)
    train.run(case, workspace)
    assert_same_training(tmp_path / "whole", tmp_path / "parts", case)


def test_killed_process_goes_on_bit_for_bit(stubs, monkeypatch, tmp_path):
    """A process killed by SIGKILL after step 7 resumes from step 6 and ends in the same bits."""
    child = start_training(tmp_path / "killed", kill_at=7)
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    case = make_case(train={"checkpoint_every": 3})
    train.run(case, make_workspace(tmp_path / "whole"))
    asked: list[int] = []
    install(monkeypatch.setattr, StubSource(before_batch=lambda: asked.append(1)))
    train.run(case, make_workspace(tmp_path / "killed"))
    assert len(asked) == 4
    assert_same_training(tmp_path / "whole", tmp_path / "killed", case)


def kill_and_go_on(root: Path, **settings) -> int:
    """Run a training until it is done, killing it as told the first time; returns the exit code of that."""
    child = start_training(root, **settings)
    child.communicate()
    return child.returncode


def test_kill_in_the_middle_of_a_checkpoint_changes_no_byte(stubs, tmp_path):
    """Killed while the second checkpoint is a temporary file, training goes on from the first, exactly."""
    case = make_case(train={"checkpoint_every": 3})
    train.run(case, make_workspace(tmp_path / "whole"))
    killed = make_workspace(tmp_path / "killed")
    # the clock's file is the first temporary file, each checkpoint is synced twice
    assert kill_and_go_on(tmp_path / "killed", kill_in_save=4) == -signal.SIGKILL
    assert len(list(killed.folder("train", case).glob(".checkpoint*.part"))) == 1
    assert (killed.folder("train", case) / engine.CHECKPOINT).exists()
    train.run(case, killed)
    assert_same_training(tmp_path / "whole", tmp_path / "killed", case)
    assert not list(killed.folder("train", case).glob(".*")), (
        "each kill would leave a checkpoint's size behind"
    )


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(stubs, tmp_path):
    """Killed by SIGKILL at random times until it is done, a training ends in the bytes of one in one go."""
    case = make_case(train={"checkpoint_every": 3, "steps": 60})
    train.run(case, make_workspace(tmp_path / "whole"))
    clock, kills = random.Random(0), 0
    context = multiprocessing.get_context("forkserver")  # imports once, not at every start
    context.set_forkserver_preload(["stage_cases"])
    beat = tmp_path / "beat"
    settings = {"steps": 60, "slow": 0.02, "beat": str(beat)}
    while read_output(make_workspace(tmp_path / "killed").folder("train", case)) is None:
        beat.unlink(missing_ok=True)
        child = context.Process(
            target=train_here, args=(str(tmp_path / "killed"), torch.get_num_threads(), settings)
        )
        child.start()
        while child.is_alive() and not beat.exists():  # until its first step
            time.sleep(0.01)
        child.join(clock.uniform(0.2, 0.8))
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
    assert kills >= 2
    assert_same_training(tmp_path / "whole", tmp_path / "killed", case)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_with_a_checkpoint_of_the_present_step(stubs, tmp_path, number, code):
    """SIGTERM and Ctrl-C save the step at hand, say so, give the usual exit code, and cost no bit."""
    case = make_case(train={"checkpoint_every": 3})
    child = start_training(tmp_path / "stopped", slow=0.2)
    while child.stdout.readline().strip() != "4":
        assert child.poll() is None
    child.send_signal(number)
    _, errors = child.communicate()
    assert child.returncode == code
    assert "case: stopped at training step 5 of 10, which is saved; run the same" in errors
    folder = make_workspace(tmp_path / "stopped").folder("train", case)
    assert load_checkpoint(folder / engine.CHECKPOINT, case.key("train")).progress.step == 5
    train.run(case, make_workspace(tmp_path / "stopped"))
    train.run(case, make_workspace(tmp_path / "whole"))
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", case)


def test_full_disk_is_one_error_and_the_old_checkpoint_stays(stubs, tmp_path):
    """When a checkpoint no longer fits, the training ends with StorageError; it goes on from the last one."""
    case = make_case(train={"checkpoint_every": 3})
    child = start_training(tmp_path / "full", file_limit=1000)
    _, errors = child.communicate()
    assert child.returncode == 1
    assert "StorageError: cannot write" in errors
    assert "what is finished is kept" in errors
    folder = make_workspace(tmp_path / "full").folder("train", case)
    assert load_checkpoint(folder / engine.CHECKPOINT, case.key("train")).progress.step == 3
    assert not list(folder.glob(".*part"))
    train.run(case, make_workspace(tmp_path / "full"))
    train.run(case, make_workspace(tmp_path / "whole"))
    assert_same_training(tmp_path / "whole", tmp_path / "full", case)


def test_damaged_checkpoint_is_reported_and_the_one_before_used(stubs, tmp_path):
    """One flipped bit in the newest checkpoint: training goes on from the one before; results say so."""
    case, told = make_case(train={"checkpoint_every": 3}), []
    train.run(case, make_workspace(tmp_path / "whole"))
    start_training(tmp_path / "hurt", kill_at=8).communicate()
    workspace = dataclasses.replace(
        make_workspace(tmp_path / "hurt"), progress=lambda stage, done, total, note: told.append(note)
    )
    path = workspace.folder("train", case) / engine.CHECKPOINT
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for kill_at in (5, 8):  # before and after the next checkpoint, which must not push out the whole one
        start_training(tmp_path / "hurt", kill_at=kill_at).communicate()
        assert load_checkpoint(previous_path(path), case.key("train")).progress.step == 3
    path.unlink()  # as if killed between moving the old file away and the new one in
    output = train.run(case, workspace)
    note = "checkpoint.safetensors could not be used; training went on from the checkpoint before it, step 3"
    assert note in told
    assert next(m.note for m in output.measurements if m.name == "training_warnings") == note
    whole = read_output(make_workspace(tmp_path / "whole").folder("train", case))
    assert output.curves == whole.curves


def test_a_damaged_average_comes_back_as_the_error_says(stubs, tmp_path):
    """The advice followed to the letter: the same bytes again, and no step is made."""
    case, workspace = make_case(), make_workspace(tmp_path)
    train.run(case, workspace)
    path = workspace.folder("train", case) / train.AVERAGED
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError) as told:
        load_averaged(path, case.key("train"))
    moved = re.search(r"; move it and (\S+) away, then run the suite again: no step", str(told.value))
    assert moved
    path.rename(tmp_path / "away")
    Path(moved[1]).rename(tmp_path / "away too")

    def no_step(*_):
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Trainer, "_step", no_step)
        train.run(case, workspace)
    assert path.read_bytes() == whole
