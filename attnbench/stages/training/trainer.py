"""AdamW on the case's objective, step by step, from the last checkpoint on.

Every random number is a function of (seed, step, position in the batch): a killed training that is started
again ends in the same bits as one that was never interrupted (on the same machine and thread count), and
several processes see what one sees.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attnbench.diffusion.noise import derive_seed
from attnbench.diffusion.objective import Objective, build_objective
from attnbench.errors import CheckpointError, NonFiniteError
from attnbench.models.embeddings import LabelEmbedding
from attnbench.specs import Case
from attnbench.stages.distributed import ALONE, WRITING, LeftToFirstError, World
from attnbench.stages.interrupts import StopRequest, on_signal
from attnbench.stages.latents.model_space import TrainingSource
from attnbench.stages.training.batches import BatchSchedule, MicroBatch, PartMaker, cut_batch, prefetched
from attnbench.stages.training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_into,
    load_newest,
    restore_optimizer,
    save_checkpoint,
    set_aside,
)
from attnbench.stages.training.distillation import Distillation
from attnbench.stages.training.ema import WeightAverage
from attnbench.stages.training.global_batch_norm import use_global_batch_norm, work_alone
from attnbench.stages.training.held_out_loss import HeldOutImages, HeldOutLoss
from attnbench.stages.training.journal import Journal
from attnbench.stages.training.log import RecordedStatistics
from attnbench.stages.training.loss import TrainingLoss
from attnbench.stages.training.loss_curve import Timing, TrainingProgress
from attnbench.stages.training.nonfinite import explain_nonfinite
from attnbench.stages.training.sharding import UsedParameters, cut_like, put_together, shard_model, whole
from attnbench.stages.training.teaching import check_same_teacher
from attnbench.storage.names import CHECKPOINT
from attnbench.storage.store import Workspace


class Trainer:
    """The state of one training, and how it moves on. Use inside `fork_rng`."""

    def __init__(
        self,
        case: Case,
        workspace: Workspace,
        model: nn.Module,
        source: TrainingSource,
        flip: bool,
        *,
        held_out: HeldOutImages | None = None,
        world: World = ALONE,
        teacher: str = "",
        taught_by: nn.Module | None = None,
    ) -> None:
        """`teacher` is the SHA-256 of its weights, `taught_by` its module where it makes a pass each step."""
        self.case, self.settings, self.workspace, self.world = case, case.train, workspace, world
        self.device = world.device_of(workspace.device)
        self.model = model.to(self.device).train()
        self.is_sharded = self.settings.sharding == "fsdp2" and world.size > 1
        if self.is_sharded:
            shard_model(self.model, self.device, world.size)
        self.used = UsedParameters(self.model) if self.is_sharded else None
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._adamw()
        decays = [self.settings.ema_decay, *self.settings.extra_ema_decays]
        self.averages = {
            decay: WeightAverage(self.model, decay, warmup=self.settings.ema_warmup) for decay in decays
        }
        objective = build_objective(
            case.train, learned_variance=case.model.learned_variance, device=self.device
        )
        self.parts = self._part_maker(source, objective, flip)
        cast("LabelEmbedding", model.label_embed).dropout = 0.0  # the parts' labels are dropped already
        self.teacher = teacher
        distillation = None
        if taught_by is not None and self.settings.teacher is not None:
            channels = case.model.in_channels
            distillation = Distillation(taught_by, self.model, self.settings.teacher, channels)
        self.loss = TrainingLoss(self.model, objective, self.settings, self.device, world.size, distillation)
        self.held_out = HeldOutLoss(
            held_out or HeldOutImages(note="skipped: none were given"),
            objective,
            device=self.device,
            batch_size=self.settings.batch_size // (self.settings.grad_accumulation * world.size),
        )
        self.progress = TrainingProgress()
        self.timings: list[Timing] = []
        self._shared_loss = self._share()

    def _adamw(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.parameters,
            lr=self.settings.lr,
            betas=(0.9, 0.999),
            weight_decay=self.settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )

    def _part_maker(self, source: TrainingSource, objective: Objective, flip: bool) -> PartMaker:
        return PartMaker(
            schedule=BatchSchedule(
                num_examples=len(source),
                batch_size=self.settings.batch_size,
                seed=self.case.seed,
                flip=flip,
            ),
            source=source,
            objective=objective,
            device=self.device,
            null_label=cast("int", self.model.null_label),
            class_dropout=self.case.model.class_dropout,
        )

    @property
    def checkpoint_path(self) -> Path:
        """Where this training's checkpoint lies."""
        return self.workspace.folder("train", self.case) / CHECKPOINT

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; raises CheckpointError."""
        found = load_newest(self.checkpoint_path, self.case.key("train"))
        if found is not None:
            checkpoint, note = found
            check_same_teacher(checkpoint.progress.teacher, self.teacher, self.checkpoint_path)
            live = self.model.state_dict()
            weights = checkpoint.groups["model"].items()
            cut = {name: cut_like(tensor, live.get(name, tensor)) for name, tensor in weights}
            load_into(self.model, cut, self.checkpoint_path)
            restore_optimizer(self.optimizer, checkpoint.groups["optimizer"])
            for decay, average in self.averages.items():
                average.load_state_dict(checkpoint.groups[self._group(decay)])
            self.progress = checkpoint.progress
            if note:
                if self.world.is_first:
                    set_aside(self.checkpoint_path)
                notes = [*self.progress.notes, note]
                self.progress = self.progress.model_copy(update={"notes": notes})
                self.workspace.report("train", self.progress.step, self.settings.steps, note)
        steps = self.world.gather(self.progress.step)
        if len(set(steps)) > 1:
            raise CheckpointError(f"the processes read checkpoints of different steps: {steps}; run again")

    def save(self) -> None:
        """Write the checkpoint; every process must call it, the first one writes."""
        groups = {"model": self.model.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        groups |= {self._group(decay): average.state_dict() for decay, average in self.averages.items()}
        first = self.world.is_first
        complete = {group: put_together(tensors, keep=first) for group, tensors in groups.items()}
        if first:
            checkpoint = Checkpoint(groups=complete, progress=self.progress)
            with WRITING:
                save_checkpoint(self.checkpoint_path, checkpoint, self.case.key("train"))

    def _group(self, decay: float) -> str:
        return "ema" if decay == self.settings.ema_decay else f"ema-{decay}"

    def train_until(self, last: int) -> None:
        """Make steps until `last` are done; checkpoints on the way and at the end."""
        stop = StopRequest()
        journal = None
        if self.world.is_first:
            journal = Journal(self.case, self.workspace, self.progress, stop)
            self.timings = journal.timings
        first = self.progress.step
        cuts = cut_batch(
            self.settings.batch_size, self.settings.grad_accumulation, self.world.rank, self.world.size
        )
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.callback(journal.close)
                stack.enter_context(on_signal(stop))
            make = partial(self.parts.make, slices=cuts)
            for step, parts, waited in prefetched(make, first, last):
                started = time.perf_counter()
                recorder = self._recorder(step + 1)
                loss, norm, asked = self._step(step, parts, recorder, journal)
                recorded = self._gather(recorder)
                seconds = waited + time.perf_counter() - started
                held_out = self._held_out_losses(step + 1)
                if journal is not None:
                    journal.add(
                        loss=loss,
                        norm=norm,
                        rate=self.rate(step),
                        recorded=recorded,
                        held_out=held_out,
                        seconds=seconds,
                        waited=waited,
                    )
                every = self.settings.checkpoint_every
                if asked or step + 1 == last or (every is not None and (step + 1) % every == 0):
                    self._save(journal)

    def _save(self, journal: Journal | None) -> None:
        if journal is not None:
            kept = {"teacher": self.teacher, "went_on_from": self.progress.went_on_from}
            self.progress = journal.progress().model_copy(update=kept)
        self.save()
        if journal is not None:
            journal.saved()

    def _held_out_losses(self, done: int) -> list[float] | None:
        """Measure the averaged weights after `done` steps where that is due; every process does the same."""
        due = done % self.settings.held_out_every == 0 or done == self.settings.steps
        if not (due and self.held_out.is_measured):
            return None
        with self.averages[self.settings.ema_decay].in_place():
            return self.held_out.of(self.model, self.loss.autocast)

    def _recorder(self, done: int) -> RecordedStatistics | None:
        """Return a recorder for a step that ends a log interval."""
        due = done % self.settings.log_every == 0 or done == self.settings.steps
        parts = self.settings.grad_accumulation * self.world.size
        return RecordedStatistics(self.settings.batch_size // parts) if due else None

    def _gather(self, recorder: RecordedStatistics | None) -> RecordedStatistics | None:
        """Return what all processes recorded in this step."""
        if recorder is None or self.world.size == 1:
            return recorder
        together = RecordedStatistics()
        for other in self.world.gather(recorder):
            together.merge(other)
        return together

    def _step(
        self,
        step: int,
        parts: list[MicroBatch],
        recorder: RecordedStatistics | None = None,
        journal: Journal | None = None,
    ) -> tuple[float, float, bool]:
        """Make one optimizer step and return its loss and its gradient's norm before clipping.

        The third value tells every process whether the first one's journal wants a checkpoint. Raises
        NonFiniteError before any harm is done.
        """
        loss = torch.zeros((), device=self.device)
        for part in parts:
            with self._summing(part is parts[-1]):
                part_loss = self._loss(step, part, self._shared_loss, recorder) / len(parts)
                part_loss.backward()
            loss += part_loss.detach()
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        wanted = float(journal is not None and journal.wants_checkpoint())
        own = torch.stack([loss, torch.full_like(loss, wanted)])
        if self.used is not None:
            own = torch.cat([own, own.new_tensor(self.used.take())])
        told = self.world.mean(own)
        norm_value, value, asked, *used = torch.cat([norm[None], told]).tolist()  # one wait for the device
        if not (math.isfinite(value) and math.isfinite(norm_value)):
            raise self._explain(step)
        if self.used is not None:  # FSDP2 has made zeros of the gradients that there are not
            for parameter, share in zip(self.parameters, used, strict=True):
                if not share:
                    parameter.grad = None
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average in self.averages.values():
            average.update(step)
        return value, norm_value, asked > 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then constant."""
        return self.settings.lr * min(1.0, (step + 1) / max(1, self.settings.warmup_steps))

    def _loss(
        self, step: int, part: MicroBatch, loss: nn.Module, recorder: RecordedStatistics | None = None
    ) -> torch.Tensor:
        """Return the loss of a part: a function of the weights, the seed, the step and the part alone."""
        # for layers that draw random numbers themselves
        torch.manual_seed(derive_seed(self.case.seed, "model", step, part.first))
        value: torch.Tensor = loss(part, recorder)
        return value

    def _share(self) -> nn.Module:
        """Return the loss whose gradients are the means over all processes."""
        if self.world.size == 1:
            return self.loss
        use_global_batch_norm(self.model)
        if self.is_sharded:
            return self.loss  # gradients of cut weights come out as means
        # a parameter may have a gradient in one process and not in another; without one in any, it has none
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is younger than our torch
            return DistributedDataParallel(self.loss, broadcast_buffers=False, find_unused_parameters=True)

    def _summing(self, last: bool) -> Any:
        """Return a context in which gradients wait for the last micro-batch before processes share them."""
        if last or self.world.size == 1 or self.is_sharded:  # whole gradients of all would not fit
            return contextlib.nullcontext()
        return self._shared_loss.no_sync()  # type: ignore[operator]

    def _explain(self, step: int) -> NonFiniteError | LeftToFirstError:
        """Return the error of a step whose loss or gradient is not finite.

        The first process looks alone, or all together at the same parts where weights are cut.
        """
        if not (self.world.is_first or self.is_sharded):
            return LeftToFirstError(f"training step {step}: not finite; the first process says where")
        work_alone(self.model)
        cuts = cut_batch(self.settings.batch_size, self.settings.grad_accumulation * self.world.size)
        parts = self.parts.make(step, cuts)
        return explain_nonfinite(
            self.model, [partial(self._loss, step, part, self.loss) for part in parts], step
        )
