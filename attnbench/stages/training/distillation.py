"""What a teacher adds to the loss of a micro-batch: distances of outputs and of what the blocks compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from attnbench.specs import TeacherSpec


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a teacher says of one micro-batch: inference tensors, read but never differentiated."""

    output: torch.Tensor
    """[B, C or 2C, H, W]."""
    features: tuple[torch.Tensor, ...]
    """One [B, N, C] of each block; none where nobody asks."""


class Distillation:
    """Compares a student with its teacher on the same noised examples, times and labels.

    Each term is a mean over images, so that processes and micro-batches may be averaged. Distances are taken
    in fp32. The teacher is no part of the student's module: nothing of it is trained, saved or shared.
    Sources: noise and variance of LiT arXiv:2501.12976 (its loss as others describe its released code); noise
    and the attention's outputs of LinFusion arXiv:2409.02097 (released code: mean over layers of the mean
    squared error).
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, settings: TeacherSpec, channels: int) -> None:
        self.teacher, self.settings, self.channels = teacher.eval(), settings, channels
        self._of_teacher = _Features(teacher, settings)
        self._of_student = _Features(student, settings)

    @torch.inference_mode()
    def ask(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, autocast: torch.autocast) -> Lesson:
        """Return what the teacher says of noised examples [B, C, H, W] at times [B], labels int64 [B]."""
        with autocast, self._of_teacher as heard:
            output = self.teacher(x, t, labels)
        return Lesson(output=output, features=tuple(heard))

    def listen(self) -> _Features:
        """Return a context in which the student's own features are heard, for `terms`."""
        return self._of_student

    def terms(
        self, output: torch.Tensor, features: list[torch.Tensor], lesson: Lesson
    ) -> dict[str, torch.Tensor]:
        """Return the weighted terms of the loss by name, scalars in fp32."""
        settings, c = self.settings, self.channels
        found: dict[str, torch.Tensor] = {}
        if settings.noise:
            found["noise"] = settings.noise * _distance(output[:, :c], lesson.output[:, :c])
        if settings.variance:
            found["variance"] = settings.variance * _distance(output[:, c:], lesson.output[:, c:])
        if settings.features:
            pairs = zip(features, lesson.features, strict=True)
            found["features"] = settings.features * torch.stack([_distance(a, b) for a, b in pairs]).mean()
        return found


class _Features:
    """Keeps what a model's attentions, or its blocks, return while it is entered; else costs a test each."""

    def __init__(self, model: nn.Module, settings: TeacherSpec) -> None:
        self._heard: list[torch.Tensor] = []
        self._listens = False
        if settings.features:
            blocks = cast("nn.ModuleList", model.blocks)
            for block in blocks:
                part = block.attn if settings.features_of == "attention" else block
                cast("nn.Module", part).register_forward_hook(partial(_hear, self))

    def __enter__(self) -> list[torch.Tensor]:
        self._heard, self._listens = [], True
        return self._heard

    def __exit__(self, *error: object) -> None:
        self._listens = False  # activations may be computed again in the backward pass: they are heard once
        self._heard = []

    def hear(self, output: torch.Tensor) -> None:
        """Keep one output."""
        if self._listens:
            self._heard.append(output)


def _hear(features: _Features, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    features.hear(output)


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance, in fp32; the gradient goes to `ours` alone."""
    return (ours.float() - theirs.float()).square().mean()
