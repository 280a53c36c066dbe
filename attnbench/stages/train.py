"""Stage `train`: AdamW on the case's objective, from the last checkpoint to the averaged weights.

Every random number is a function of (seed, step): a killed training that is started again ends in
the same bits as one that was never interrupted (on the same machine and thread count).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnbench.data import load_dataset
from attnbench.diffusion.noise import derive_seed
from attnbench.diffusion.objective import build_objective
from attnbench.errors import UserInputError
from attnbench.models import build_model
from attnbench.specs import Case
from attnbench.stages.batches import BatchSchedule
from attnbench.stages.checkpoint import (
    Checkpoint,
    ModelInput,
    flatten_optimizer,
    load_checkpoint,
    load_into,
    restore_optimizer,
    save_averaged,
    save_checkpoint,
)
from attnbench.stages.compatibility import check_objective
from attnbench.stages.ema import WeightAverage
from attnbench.stages.loss_curve import LossCurve, Progress, describe_training
from attnbench.stages.nonfinite import explain_nonfinite
from attnbench.stages.prepare import TrainingSource, training_source
from attnbench.stages.store import StageOutput, Workspace, read_output, write_output

CHECKPOINT, AVERAGED = "checkpoint.safetensors", "ema.safetensors"
REPORT_EVERY_S = 0.2


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Train one case, or return what an earlier run finished.

    Raises UserInputError, NonFiniteError, CheckpointError or StorageError; the last checkpoint stays.
    """
    folder = workspace.folder("train", case)
    finished = read_output(folder)
    if finished is not None:
        return finished
    check_objective(case)
    dataset = load_dataset(case.data)
    source = training_source(case, dataset, workspace)
    model_input = ModelInput(shape=source.shape, num_classes=dataset.num_classes)
    flip = dataset.flip if case.train.horizontal_flip is None else case.train.horizontal_flip
    with fork_rng(workspace.device):
        trainer = Trainer(case, workspace, initial_model(case, model_input, workspace.device), source, flip)
        trainer.resume()
        trainer.train_until(case.train.steps)
    save_averaged(folder / AVERAGED, trainer.average.state_dict(), model_input, case.key("train"))
    output = describe_training(trainer.progress, case.train.batch_size)
    write_output(folder, output)
    return output


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


def fork_rng(device: torch.device) -> Any:
    """Return a context that leaves torch's global generators as it found them."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Trainer:
    """The state of one training, and how it moves on. Use inside `fork_rng`."""

    def __init__(
        self, case: Case, workspace: Workspace, model: nn.Module, source: TrainingSource, flip: bool
    ) -> None:
        self.case, self.settings, self.workspace, self.source = case, case.train, workspace, source
        self.device = workspace.device
        self.model = model.to(self.device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.settings.lr,
            betas=(0.9, 0.999),
            weight_decay=self.settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.average = WeightAverage(self.model, self.settings.ema_decay)
        self.schedule = BatchSchedule(
            num_examples=len(source), batch_size=self.settings.batch_size, seed=case.seed, flip=flip
        )
        self.objective = build_objective(
            case.train, learned_variance=case.model.learned_variance, device=self.device
        )
        self.progress = Progress()

    @property
    def checkpoint_path(self) -> Path:
        """Where this training's checkpoint lies."""
        return self.workspace.folder("train", self.case) / CHECKPOINT

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one; raises CheckpointError."""
        path = self.checkpoint_path
        if not path.exists():
            return
        checkpoint = load_checkpoint(path, self.case.key("train"))
        load_into(self.model, checkpoint.groups["model"], path)
        restore_optimizer(self.optimizer, checkpoint.groups["optimizer"])
        self.average.load_state_dict(checkpoint.groups["ema"])
        self.progress = checkpoint.progress

    def save(self) -> None:
        """Write the checkpoint."""
        groups = {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": flatten_optimizer(self.optimizer),
        }
        checkpoint = Checkpoint(groups=groups, progress=self.progress)
        save_checkpoint(self.checkpoint_path, checkpoint, self.case.key("train"))

    def train_until(self, last: int) -> None:
        """Make steps until `last` are done; checkpoints on the way and at the end."""
        settings, heard = self.settings, 0.0
        curve = LossCurve(self.progress, log_every=settings.log_every, num_steps=settings.steps)
        while curve.step < last:
            started = time.perf_counter()
            loss = self._step(curve.step)
            now = time.perf_counter()
            curve.add(loss, now - started)
            if now - heard > REPORT_EVERY_S or curve.step == last:
                heard = now
                note = "" if curve.last is None else f"loss {curve.last:.4f}"
                self.workspace.report("train", curve.step, settings.steps, note)
            if curve.step % settings.checkpoint_every == 0 or curve.step == last:
                self.progress = curve.progress()
                self.save()

    def _step(self, step: int) -> float:
        """Make one optimizer step and return its loss; raises NonFiniteError before any harm is done."""
        loss = self._loss(step)
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        value, norm_value = torch.stack([loss.detach(), norm]).tolist()  # one wait for the device
        if not (math.isfinite(value) and math.isfinite(norm_value)):
            raise explain_nonfinite(self.model, lambda: self._loss(step), step)
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * min(1.0, (step + 1) / max(1, self.settings.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(step)
        return value

    def _loss(self, step: int) -> torch.Tensor:
        """Return the loss of one step: a function of the weights, the seed and the step alone."""
        batch = self.schedule.at(step)
        x0 = self.source.batch(batch.indices, batch.flips, batch.noise_keys).to(self.device)
        labels = self.source.labels[batch.indices].to(self.device)
        torch.manual_seed(derive_seed(self.case.seed, "train", step))
        auxiliary: list[torch.Tensor] = []

        def denoiser(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            with self._autocast():
                output: torch.Tensor = self.model(
                    x, time, labels, loss_sink=lambda name, value: auxiliary.append(value)
                )
            return output

        return sum(auxiliary, start=self.objective.loss(denoiser, x0))

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
