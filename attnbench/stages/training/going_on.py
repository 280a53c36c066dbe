"""A training that goes on from a finished one of fewer steps, instead of making them anew."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from attnbench.errors import CheckpointError
from attnbench.specs import Case
from attnbench.stages.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from attnbench.stages.training.held_out_loss import affordable_images
from attnbench.storage.atomic import atomic_path, storage_errors
from attnbench.storage.names import CHECKPOINT, TENSORBOARD, TIMING, TRAIN_LOG
from attnbench.storage.store import NOTICE, Workspace
from attnbench.storage.trainings import finished_shorter, finished_trainings


def go_on_from_shorter(case: Case, workspace: Workspace) -> None:
    """Give a training that has not begun the checkpoint and the logs of the longest finished shorter one.

    The weights are those of a training of all its steps, bit for bit (on the same machine and thread count);
    its curve has a point more, where the shorter one ended. A checkpoint that cannot be used is told of, and
    the next shorter one is taken, if there is one. For who holds the training's folder; raises StorageError.
    """
    found = _longest_readable(case, workspace)
    if found is None:
        return
    shorter, checkpoint = found
    source, folder = workspace.folder("train", shorter), workspace.folder("train", case)
    progress = checkpoint.progress.model_copy(
        update={
            "went_on_from": shorter.train.steps,
            "held_out_curve": _shared_points(checkpoint, shorter, case),
        }
    )
    for name in (TRAIN_LOG, TIMING):
        if (source / name).exists():
            _copy(source / name, folder / name)
    if (source / TENSORBOARD).exists():
        with storage_errors(folder / TENSORBOARD):
            shutil.copytree(source / TENSORBOARD, folder / TENSORBOARD, dirs_exist_ok=True)
    checkpoint = replace(checkpoint, progress=progress)
    save_checkpoint(folder / CHECKPOINT, checkpoint, case.key("train"))  # last: from here on it is its own
    workspace.report(NOTICE, 0, 0, f"{case.label}: goes on from {_called(shorter)}")


def _longest_readable(case: Case, workspace: Workspace) -> tuple[Case, Checkpoint] | None:
    """Return the longest finished shorter training with a sound checkpoint; tell of those without."""
    finished = finished_trainings(workspace.root)
    while (shorter := finished_shorter(case, workspace.root, finished)) is not None:
        key = shorter.key("train")
        try:
            return shorter, load_checkpoint(workspace.folder("train", shorter) / CHECKPOINT, key)
        except CheckpointError as error:
            words = f"{case.label}: {_called(shorter)} is not gone on from: {error}"
            workspace.report(NOTICE, 0, 0, words)
            del finished[key]
    return None


def _called(shorter: Case) -> str:
    return f"the finished training of {shorter.train.steps:,} steps"


def _shared_points(checkpoint: Checkpoint, shorter: Case, case: Case) -> list[tuple[float, float]]:
    """Return the held-out points that the longer training would measure itself, on as many images."""
    if affordable_images(shorter, sys.maxsize) != affordable_images(case, sys.maxsize):
        return []
    every = case.train.held_out_every
    return [(step, loss) for step, loss in checkpoint.progress.held_out_curve if step % every == 0]


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
