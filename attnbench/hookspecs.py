"""The questions attnbench asks its plugins; each hook yields typed records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pluggy

from attnbench.contract import AttentionBackend, FeatureExtractor

PROJECT = "attnbench"
ENTRY_POINT_GROUP = "attnbench"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def attnbench_backends() -> Iterable[AttentionBackend]:  # type: ignore[empty-body]
    """Yield the attention backends this plugin provides."""


@hookspec
def attnbench_extractors() -> Iterable[FeatureExtractor]:  # type: ignore[empty-body]
    """Yield the feature extractors (for distances between image sets) this plugin provides."""


@hookspec
def attnbench_training_log(label: str, folder: Path, record: Mapping[str, Any]) -> None:
    """Receive one record of a running training; called in the training process, so be quick.

    `label` is the case's, `folder` holds its checkpoint, `record` is one line of train.jsonl (`step`, and
    what there is of `loss`, `grad_norm`, `lr`, `recorded`, `held_out_loss`). After a kill the steps since the
    last checkpoint are sent again: keep the last record of a step. An error is reported with the results and
    ends the calls, not the training.
    """
