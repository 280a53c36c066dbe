"""Stage `train`: from a case to the averaged weights of its finished training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from attnbench.diffusion.noise import fork_rng
from attnbench.errors import UserInputError
from attnbench.models import build_model
from attnbench.specs import Case
from attnbench.stages import prepare
from attnbench.stages.compatibility import check_objective
from attnbench.stages.distributed import World, together
from attnbench.stages.interrupts import Stopped
from attnbench.stages.latents.model_space import training_source
from attnbench.stages.prepare import dataset_of
from attnbench.stages.training.batches import cut_batch
from attnbench.stages.training.block_origins import promises_the_same
from attnbench.stages.training.checkpoint import ModelInput, load_into, previous_path, save_averaged
from attnbench.stages.training.counts_agree import check_counts
from attnbench.stages.training.going_on import go_on_from_shorter
from attnbench.stages.training.growth import grown, require_preserved
from attnbench.stages.training.held_out_loss import held_out_images
from attnbench.stages.training.initial_weights import initial_weights, model_of
from attnbench.stages.training.loss_curve import describe_training
from attnbench.stages.training.sharding import put_together
from attnbench.stages.training.teaching import (
    inherit,
    load_teacher,
    teaching_measurements,
    untaught,
)
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.names import AVERAGED, CHECKPOINT, further_average
from attnbench.storage.store import NOTICE, StageOutput, Workspace, read_output, write_output


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Train one case, or return what an earlier run finished.

    Raises UserInputError, UnsupportedError, PluginError, NonFiniteError, CheckpointError or StorageError; the
    last checkpoint stays. Ctrl-C and SIGTERM raise Stopped after a checkpoint.
    """
    folder = workspace.folder("train", case)
    with workspace.holding(folder):
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        check_objective(case)
        check_counts(case)
        train_teacher(case, workspace)
        go_on_from_shorter(case, workspace)
        with together(case, workspace, "train") as world:
            output = train_case(case, workspace, world)
        output.computed_with.update(case.outside_key("train"))
        write_output(folder, output)
        previous_path(folder / CHECKPOINT).unlink(missing_ok=True)  # it is for going on only
        return output


def train_teacher(case: Case, workspace: Workspace) -> None:
    """Prepare and train the case of the same suite that teaches this one, unless it is finished.

    Raises AttnbenchError, whatever a stranger's attention has raised, saying that it was the teacher's.
    """
    teacher = case.teacher.trains_here if case.teacher is not None else None
    if teacher is None or read_output(workspace.root / "train" / teacher.key("train")) is not None:
        return
    workspace.report(NOTICE, 0, 0, f"{case.label}: its teacher {teacher.label} is trained first")
    try:
        if teacher.key("prepare") != case.key("prepare"):  # another autoencoder, or other images
            prepare.run(teacher, workspace)
        run(teacher, workspace)
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        raise untaught(error, teacher) from error


def train_case(case: Case, workspace: Workspace, world: World) -> StageOutput:
    """Train one case as one of the processes of a world; the first of them writes the averaged weights."""
    device = world.device_of(workspace.device)
    dataset = dataset_of(case, workspace)
    source = training_source(case, dataset, workspace)
    model_input = ModelInput(shape=source.shape, num_classes=dataset.num_classes)
    flip = dataset.flip if case.train.horizontal_flip is None else case.train.horizontal_flip
    held_out = held_out_images(case, dataset, replace(workspace, device=device))
    with fork_rng(device):
        model = initial_model(case, model_input, device)
        if case.train.init_from is not None:
            start_from(case.train.init_from, model, case, model_input)
        teacher = load_teacher(case, model_input, workspace)
        taught_by = None
        if teacher is not None and case.train.teacher is not None:
            inherit(model, teacher, case)
            if case.train.teacher.is_asked:
                taught_by = teacher.module(model_input, device)
            teacher = replace(teacher, weights={})  # a second copy of them would stay all the while
        trainer = Trainer(
            case,
            workspace,
            model,
            source,
            flip,
            held_out=held_out,
            world=world,
            teacher="" if teacher is None else teacher.sha256,
            taught_by=taught_by,
        )
        trainer.resume()
        trainer.train_until(case.train.steps)
    folder = workspace.folder("train", case)
    for decay, average in trainer.averages.items():
        weights = put_together(average.state_dict(), keep=world.is_first)
        if world.is_first:
            name = AVERAGED if decay == case.train.ema_decay else further_average(decay)
            save_averaged(folder / name, weights, model_input, case.key("train"))
    if not world.is_first:
        return StageOutput()
    output = describe_training(trainer.progress, trainer.timings, case.train.batch_size)
    output.measurements.append(trainer.held_out.measurement(trainer.progress.held_out_curve))
    output.curves["held_out_loss"] = trainer.progress.held_out_curve
    if teacher is not None:
        cut = cut_batch(case.train.batch_size, case.train.grad_accumulation, 0, world.size)[:1]
        part = trainer.parts.make(0, cut)[0] if taught_by is not None else None
        found = teaching_measurements(case, model, teacher, taught_by, part)
        output.measurements.extend(found)
    return output


def start_from(folder: Path, model: nn.Module, case: Case, model_input: ModelInput) -> None:
    """Load an exported folder's weights into the case's model, which may be deeper (train.growth).

    Raises UserInputError, DataError or CheckpointError where they do not fit.
    """
    growth, side, num_classes = case.train.growth, model_input.shape[1], model_input.num_classes
    given = initial_weights(folder, case.model, side=side, num_classes=num_classes, growth=growth)
    if growth is None:
        load_into(model, given, folder)
        return
    source = model_of(folder)
    load_into(model, {**model.state_dict(), **grown(given, source, case.model, growth)}, folder)
    if promises_the_same(source, growth):
        require_preserved(model, given, source, side=side, num_classes=num_classes)


def initial_model(case: Case, model_input: ModelInput, device: torch.device) -> nn.Module:
    """Build the case's model with weights that depend on nothing but its seed and its code."""
    channels, height, width = model_input.shape
    if (height, channels) != (width, case.model.in_channels):
        raise UserInputError(
            f"{case.label}: the model {case.model.name!r} takes a square of {case.model.in_channels} "
            f"channels, the data gives {channels} channels of {height} x {width}; "
            f"set model.in_channels: {channels} or choose other data"
        )
    torch.manual_seed(case.seed)
    return build_model(
        config=case.model,
        input_size=height,
        num_classes=model_input.num_classes,
        seed=case.seed,
        device=device,
    )
