"""Checkpoints: whole or absent, exact, and refused with a remedy when they cannot be trusted."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from stage_cases import install, make_case, make_workspace

from attnbench.errors import CheckpointError, StorageError
from attnbench.stages import train
from attnbench.stages.training import checkpoint
from attnbench.stages.training.checkpoint import (
    Checkpoint,
    ModelInput,
    TrainingProgress,
    load_checkpoint,
    save_checkpoint,
)
from attnbench.storage import tensor_files
from attnbench.storage.names import CHECKPOINT

GROUPS = {
    "model": {"a.weight": torch.randn(2, 3), "count": torch.tensor(7)},
    "ema": {"a.weight": torch.randn(2, 3)},
    "optimizer": {"0/step": torch.tensor(3.0)},
}
PROGRESS = TrainingProgress(step=3, curve=[(2, 0.1)], open_losses=[0.30000000000000004], open_norms=[1e-17])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint(groups=GROUPS, progress=PROGRESS), "key")
    return path


def test_checkpoint_comes_back_exactly(path):
    """Tensors, their names and groups, and every digit of the progress come back."""
    loaded = load_checkpoint(path, "key")
    assert loaded.progress == PROGRESS
    assert loaded.groups.keys() == GROUPS.keys()
    for group, named in GROUPS.items():
        assert all(torch.equal(loaded.groups[group][name], tensor) for name, tensor in named.items())


def test_checkpoint_leaves_no_other_file(path):
    """Nothing but the checkpoint remains in the folder."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_cut_checkpoint_is_refused(path, part):
    """A file cut anywhere is one error that names it and says what to do."""
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.safetensors cannot be read.*move it away, then run"
    ):
        load_checkpoint(path, "key")


def test_checkpoint_of_another_training_is_refused(path):
    """A checkpoint with another key is not taken."""
    with pytest.raises(CheckpointError, match="belongs to another training"):
        load_checkpoint(path, "other")


def test_foreign_safetensors_is_refused(path):
    """A safetensors file of somebody else is not taken."""
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by this version"):
        load_checkpoint(path, "key")


def test_full_disk_keeps_the_old_checkpoint(path, monkeypatch):
    """When the disk is full, the error says so and the last checkpoint is untouched."""
    before = path.read_bytes()

    def no_space(tensors, filename, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", no_space)
    with pytest.raises(StorageError, match=r"No space left on device.*free some space"):
        save_checkpoint(path, Checkpoint(groups=GROUPS, progress=PROGRESS), "key")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tied_weights_can_be_saved(tmp_path):
    """Tensors that share memory are stored twice instead of refused."""
    shared = torch.randn(3)
    groups = {"model": {"a": shared, "b": shared}, "ema": {}, "optimizer": {}}
    path = tmp_path / "tied.safetensors"
    save_checkpoint(path, Checkpoint(groups=groups, progress=PROGRESS), "key")
    loaded = load_checkpoint(path, "key").groups["model"]
    assert torch.equal(loaded["a"], loaded["b"])


def test_training_stops_at_a_damaged_checkpoint(monkeypatch, tmp_path):
    """Resuming from a checkpoint cut in half raises; it neither crashes nor silently starts over."""
    install(monkeypatch.setattr)
    case, workspace = make_case(), make_workspace(tmp_path)
    train.run(case, workspace)
    folder = workspace.folder("train", case)
    (folder / "done.json").unlink()
    file = folder / CHECKPOINT
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        train.run(case, workspace)


def test_weights_of_changed_code_are_refused(tmp_path):
    """Weights that no longer fit the module name file and mismatch."""
    with pytest.raises(CheckpointError, match=r"weights.*does not fit this model.*Missing key"):
        checkpoint.load_into(torch.nn.Linear(2, 2), {}, tmp_path / "weights")


def test_averaged_weights_carry_their_input(tmp_path):
    """The averaged weights know what their model takes."""
    path, taken = tmp_path / "ema.safetensors", ModelInput(shape=(4, 32, 32), num_classes=1000)
    checkpoint.save_averaged(path, {"w": torch.ones(2)}, taken, "key")
    weights, loaded = checkpoint.load_averaged(path, "key")
    assert loaded == taken
    assert torch.equal(weights["w"], torch.ones(2))


def test_missing_weights_say_how_to_have_them_again(tmp_path):
    """Sampling without a training's average names the file and what brings it back."""
    with pytest.raises(
        CheckpointError, match=r"is missing; move it and .*done\.json away, then run the suite"
    ):
        checkpoint.load_averaged(tmp_path / "ema.safetensors", "key")
