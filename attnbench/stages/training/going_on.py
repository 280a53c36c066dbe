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
    all steps are made. For who holds the training's folder; raises StorageError.
    """
    shorter = finished_shorter(case, workspace.root, finished_trainings(workspace.root))
    if shorter is None:
        return
    done = f"the finished training of {shorter.train.steps:,} steps"
    source, folder = workspace.folder("train", shorter), workspace.folder("train", case)
    try:
        checkpoint = load_checkpoint(source / CHECKPOINT, shorter.key("train"))
    except CheckpointError as error:
        workspace.report(NOTICE, 0, 0, f"{case.label}: {done} is not gone on from: {error}")
        return
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
    workspace.report(NOTICE, 0, 0, f"{case.label}: goes on from {done}")


def _shared_points(checkpoint: Checkpoint, shorter: Case, case: Case) -> list[tuple[float, float]]:
    """Return the held-out points that the longer training would measure itself, on as many images."""
    if affordable_images(shorter, sys.maxsize) != affordable_images(case, sys.maxsize):
        return []
    every = case.train.held_out_every
    return [(step, loss) for step, loss in checkpoint.progress.held_out_curve if step % every == 0]


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
