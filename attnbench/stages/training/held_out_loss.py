"""Held-out denoising loss: a cheap signal of quality while a training runs.

The same images, times and noise for every case on the same data: two curves differ by their models alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from attnbench.data import Dataset
from attnbench.data.pixels import to_model_space
from attnbench.diffusion.noise import KeyedNoise
from attnbench.diffusion.objective import Objective
from attnbench.results import Measurement
from attnbench.specs import Case
from attnbench.stages.latents.codec import BATCH_SIZE, load_codec
from attnbench.stages.latents.model_space import codec_of
from attnbench.storage.store import Workspace

NUM_TIMES = 8
SEED = 0  # of choice and noise: not the case's, so that cases of several seeds are measured alike
COST_SHARE = 0.01  # of the training
STEP_PER_FORWARD = 3  # a training step costs about three forward passes
FEWEST = 16  # images: fewer say nothing, and where they cost 1 % the training takes seconds


@dataclass(frozen=True, kw_only=True)
class HeldOutImages:
    """Held-out examples in the model's input space: x0 fp32 [n, C, H, W], labels int64 [n]; none: why."""

    x0: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    note: str = ""


def affordable_images(case: Case, available: int) -> int:
    """Return how many images to use: what is asked for, unless all measurements cost over 1 % of training."""
    train = case.train
    times_measured = -(-train.steps // train.held_out_every)
    budget = COST_SHARE * STEP_PER_FORWARD * train.steps * train.batch_size / (NUM_TIMES * times_measured)
    return min(train.held_out_images, available, max(FEWEST, int(budget)))


def held_out_images(case: Case, dataset: Dataset, workspace: Workspace) -> HeldOutImages:
    """Choose held-out images and bring them into the model's space; latents are encoded here, each time.

    A latent is the mean of its posterior, not a draw from it.
    """
    if case.train.held_out_images == 0:
        return HeldOutImages(note="skipped: train.held_out_images is 0")
    if len(dataset.held_out) == 0:
        return HeldOutImages(note="skipped: the data has no held-out images")
    count = affordable_images(case, len(dataset.held_out))
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(len(dataset.held_out), generator=generator)[:count]
    images = dataset.held_out.get(chosen)
    x0 = to_model_space(images) if case.model.input == "pixel" else _latents(case, images, workspace)
    return HeldOutImages(x0=x0, labels=dataset.held_out.labels[chosen])


def _latents(case: Case, images: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    spec = codec_of(case)
    assert spec is not None
    codec = load_codec(spec, workspace.device)
    # what follows the mean of a posterior is its log variance
    means = [codec.encode(part)[:, : codec.channels] for part in images.split(BATCH_SIZE)]
    return codec.scale * (torch.cat(means) - codec.shift)


class HeldOutLoss:
    """The training objective, without auxiliary losses, on fixed images, times and noise."""

    def __init__(
        self, images: HeldOutImages, objective: Objective, *, device: torch.device, batch_size: int
    ) -> None:
        self.images, self.objective, self.device, self.batch_size = images, objective, device, batch_size
        self.times = objective.spread_times(NUM_TIMES)

    @property
    def is_measured(self) -> bool:
        """Whether there are images to measure on."""
        return self.images.x0 is not None

    @torch.no_grad()
    def of(self, model: nn.Module, autocast: torch.autocast) -> list[float]:
        """Return a model's mean loss at each of the 8 times."""
        assert self.images.x0 is not None and self.images.labels is not None  # noqa: PT018 - is_measured
        was_training = model.training
        model.eval()
        totals = torch.zeros(NUM_TIMES, dtype=torch.float64)
        for indices in torch.arange(len(self.images.x0)).split(self.batch_size):
            x0 = self.images.x0[indices].to(self.device)
            labels = self.images.labels[indices].to(self.device)

            def denoiser(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                with autocast:
                    return cast("torch.Tensor", model(x, t, labels))

            noise = KeyedNoise(
                seed=SEED,
                indices=indices.tolist(),
                shape=tuple(x0.shape[1:]),
                device=self.device,
                purpose="held-out",
            )
            for number, time in enumerate(self.times):
                times = time.to(self.device).expand(len(x0))
                losses = self.objective.losses(denoiser, x0, times, noise.at(number))
                totals[number] += losses.double().sum().cpu()
        model.train(was_training)
        return (totals / len(self.images.x0)).tolist()

    def measurement(self, curve: list[tuple[float, float]]) -> Measurement:
        """Return the last point of a curve of means, or a note why there is none."""
        if self.images.x0 is None:
            return Measurement(name="held_out_loss", values=[], n=0, better="lower", note=self.images.note)
        return Measurement(
            name="held_out_loss",
            values=[curve[-1][1]],
            n=len(self.images.x0),
            better="lower",
            note=f"averaged weights, mean over {NUM_TIMES} equidistant times",
        )
