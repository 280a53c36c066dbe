"""The teacher of a training: its weights found and checked, what is inherited, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from attnbench.errors import AttnbenchError, CheckpointError, DataError, UnsupportedError, UserInputError
from attnbench.models import build_model
from attnbench.models.macs import macs_by_part
from attnbench.models.skeleton import fuse_for_inference
from attnbench.profiling.kernel_memory import Machine
from attnbench.profiling.live_tensors import LiveTensors
from attnbench.results import Measurement
from attnbench.specs import Case, TeacherOrigin
from attnbench.stages.latents.encoding import LatentIndex
from attnbench.stages.training.batches import MicroBatch
from attnbench.stages.training.checkpoint import ModelInput, load_averaged
from attnbench.stages.training.inheritance import ATTENTION, transfer
from attnbench.stages.training.initial_weights import exported_config, exported_weights
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import AVERAGED, LATENT_INDEX
from attnbench.storage.records import read_record
from attnbench.storage.store import Workspace

SETTING = "train.teacher.model"
FORWARD_AND_BACKWARD = 3  # of a step: two products in the backward pass for each of the forward pass
SHOWN_TENSORS = 3  # of those that an error is about
WITHOUT_WEIGHTS = 2  # of them where a weight is frozen: its own gradient is not computed


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher's averaged weights by name, on the CPU, and what it is."""

    origin: TeacherOrigin
    sha256: str
    weights: Mapping[str, torch.Tensor]

    def module(self, model_input: ModelInput, device: torch.device) -> nn.Module:
        """Return it as a module in eval mode that trains nothing, its parts fused as in sampling.

        Raises DataError where its weights do not fit the present code of its attention.
        """
        side, classes = model_input.shape[1], model_input.num_classes
        model = build_model(self.origin.model, side, classes)
        try:
            model.load_state_dict(dict(self.weights), strict=True)
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise DataError(
                f"the teacher's weights do not fit {self.origin.model.name}: {told}; the code of its "
                "attention has changed since: train or export it again"
            ) from error
        return fuse_for_inference(model.requires_grad_(False)).to(device)


def load_teacher(case: Case, model_input: ModelInput, workspace: Workspace) -> Teacher | None:
    """Return the teacher of a case, or None where it has none.

    Raises DataError where it is not there, is not the one that the suite was checked with, or was trained on
    latents of another autoencoder; UserInputError where it takes other inputs or knows other classes.
    """
    if case.train.teacher is None:
        return None
    origin = case.teacher
    if origin is None:
        raise DataError(
            f"{SETTING}: {case.train.teacher.model} was not there when the suite was checked; run it again"
        )
    if origin.folder is not None:
        config = exported_config(origin.folder, SETTING)
        found = ModelInput.model_validate(config["input"])
        weights, sha256 = exported_weights(origin.folder, SETTING), str(config["weights_sha256"])
        codec = str((config.get("codec") or {}).get("fingerprint", ""))
    else:
        path = weights_of(origin, workspace)
        assert origin.case is not None
        weights, found = load_averaged(path, origin.case.key("train"))
        sha256 = file_sha256(path)
        codec = _codec_of(origin.store or workspace.root, origin.case)
    if origin.trains_here is None and sha256 != origin.identity:
        raise DataError(
            f"{SETTING}: its weights have changed since the suite was checked; run the suite again, which is "
            "another training"
        )
    if found != model_input:
        raise UserInputError(
            f"{SETTING}: the teacher takes inputs of {' x '.join(map(str, found.shape))} and knows "
            f"{found.num_classes} classes, here they are {' x '.join(map(str, model_input.shape))} and "
            f"{model_input.num_classes}; choose another teacher, or the data that it was trained on"
        )
    ours = _codec_of(workspace.root, case)
    if codec and ours and codec != ours:
        raise DataError(
            f"{SETTING}: the teacher was trained on latents of another autoencoder (fingerprint {codec}, "
            f"here {ours}); set data.codec to that one, or choose another teacher"
        )
    return Teacher(origin=origin, sha256=sha256, weights=weights)


def weights_of(origin: TeacherOrigin, workspace: Workspace) -> Path:
    """Return where the averaged weights of a case that teaches lie."""
    assert origin.case is not None
    return (origin.store or workspace.root) / "train" / origin.case.key("train") / AVERAGED


def _codec_of(store: Path, case: Case) -> str:
    """Return the fingerprint of the autoencoder that made a case's latents; empty where nobody knows."""
    if case.model.input != "latent":
        return ""
    index = read_record(store / "prepare" / case.key("prepare") / LATENT_INDEX, LatentIndex)
    return "" if index is None else index.codec


def inherit(model: nn.Module, teacher: Teacher, case: Case) -> frozenset[str]:
    """Copy into a case's model what it inherits, freeze what is to stay, and return the inherited names.

    Raises UserInputError where something outside the attention has no counterpart in the other model.
    """
    settings = case.train.teacher
    assert settings is not None
    if settings.inherit == "none":
        return frozenset()
    report = transfer(teacher.weights, model, projections=settings.inherit == "rest-and-projections")
    lost = {name: f"stays behind: {reason}" for name, reason in report.left}
    lost |= {name: "is not the teacher's" for name in report.missing if name not in lost}
    lost = {name: reason for name, reason in lost.items() if not ATTENTION.fullmatch(name)}
    if lost:
        told = "; ".join(f"{name} {reason}" for name, reason in list(lost.items())[:SHOWN_TENSORS])
        more = f"; {len(lost) - SHOWN_TENSORS} more" if len(lost) > SHOWN_TENSORS else ""
        raise UserInputError(
            f"train.teacher.inherit: {settings.inherit} takes everything but the attention from the teacher, "
            f"which must have the same parts; {told}{more}. Choose a model or a teacher with these parts, or "
            "set train.teacher.inherit: none"
        )
    if settings.rest == "frozen":
        for name, parameter in model.named_parameters():
            if name in report.copied and not ATTENTION.fullmatch(name):
                parameter.requires_grad_(False)
    return frozenset(report.copied)


def check_same_teacher(before: str, now: str, checkpoint: Path) -> None:
    """Raise CheckpointError where a training would go on under another teacher; by the weights' SHA-256."""
    if before != now:
        raise CheckpointError(
            f"{checkpoint}: the teacher has been trained anew since (its weights were {before[:12]}, now "
            f"they are {now[:12]}); move the checkpoint away to begin again under the present one, or bring "
            "the former one's weights back"
        )


def teaching_measurements(
    case: Case, model: nn.Module, teacher: Teacher, module: nn.Module | None, part: MicroBatch | None
) -> list[Measurement]:
    """Return what a step costs with its teacher: multiply-adds of an image, and the teacher's memory.

    `module` and `part` are the teacher and one micro-batch that it sees, or None where it makes no pass.
    """
    side = _side(case, model)
    macs = macs_by_part(case.model, side)
    whole, attention = macs.total.full, macs.attention.full
    rest = {name for name, _ in model.named_parameters() if not ATTENTION.fullmatch(name)}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    own = FORWARD_AND_BACKWARD * whole
    note = "three forward passes of the student"
    if frozen == rest:
        own = FORWARD_AND_BACKWARD * attention + WITHOUT_WEIGHTS * (whole - attention)
        note = "three forward passes of the student's attention and two of the rest, which is frozen"
    taught = 0
    measured = []
    if module is not None and part is not None:
        taught = macs_by_part(teacher.origin.model, side).total.full
        note += ", one of the teacher"
        measured.append(_memory(module, part))
    weights = f"teacher's weights {teacher.sha256[:12]}"
    step = Measurement(
        name="step_macs", unit="MAC", values=[own + taught], better="lower", note=f"{note}; {weights}"
    )
    return [step, *measured]


def _side(case: Case, model: nn.Module) -> int:
    rows, _ = cast("tuple[int, int]", model.grid)
    return rows * case.model.patch_size


def _memory(module: nn.Module, part: MicroBatch) -> Measurement:
    """Measure what a teacher holds while it looks at a micro-batch: weights, and tensors at their peak."""
    name = "teacher_memory_mib"
    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    device = part.x0.device
    try:
        with (
            torch.no_grad(),
            LiveTensors(Machine(device=device.type, threads=torch.get_num_threads())) as tensors,
        ):
            module(part.x0, torch.zeros(len(part.x0), device=device), part.labels)
    except UnsupportedError as error:
        return Measurement(name=name, unit="MiB", values=[], note=str(error))
    return Measurement(
        name=name,
        unit="MiB",
        values=[(held + tensors.peak) / 2**20],
        n=len(part.x0),
        better="lower",
        note="the teacher's weights and what one pass of a micro-batch adds, in fp32, beside the student's",
    )


def untaught(error: BaseException, teacher: Case) -> AttnbenchError:
    """Return the error of a student whose teacher could not be trained: skipped where the teacher is."""
    kind = UnsupportedError if isinstance(error, UnsupportedError) else AttnbenchError
    told = str(error) if isinstance(error, AttnbenchError) else f"{type(error).__name__}: {error}"
    return kind(f"the teacher {teacher.label!r} could not be trained: {told}")
