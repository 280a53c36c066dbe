"""The images a diagnosis shows to a model: training images, classes in turn, with noise of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, GaussianDiffusion
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.noise import KeyedNoise
from attnbench.specs import Case
from attnbench.stages.latents.model_space import TrainingSource


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Clean examples [n, C, H, W] in the model's space, their classes [n], and their places in the data."""

    case: Case
    x0: torch.Tensor
    labels: torch.Tensor
    indices: list[int]

    def at(self, timestep: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the model is given at a timestep: noised examples, times [n], classes [n].

        The noise belongs to (seed, image, timestep): every case of a seed and data sees the same.
        """
        noise = KeyedNoise(
            seed=self.case.seed,
            indices=self.indices,
            shape=tuple(self.x0.shape[1:]),
            device=device,
            purpose="diagnose",
        ).at(timestep)
        x0, labels = self.x0.to(device), self.labels.to(device)
        times = torch.full((len(x0),), float(timestep), device=device)
        if self.case.train.objective == "flow":
            return RectifiedFlow().add_noise(x0, times / NUM_TIMESTEPS, noise), times, labels
        process = GaussianDiffusion(learned_variance=self.case.model.learned_variance, device=device)
        return process.add_noise(x0, times.long(), noise), times, labels


def choose_examples(case: Case, source: TrainingSource, count: int) -> Examples:
    """Return the first `count` training examples, classes in turn; a latent is the mean of its posterior."""
    chosen = in_turns(source.labels, count)
    return Examples(
        case=case,
        x0=source.batch(chosen, torch.zeros(len(chosen), dtype=torch.bool)),
        labels=source.labels[chosen],
        indices=chosen.tolist(),
    )


def in_turns(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return places in `labels` [N]: the first of every class, then the second of every class, and so on.

    Where there are more classes than `count`, evenly spaced classes give one each.
    """
    order = labels.argsort(stable=True)
    classes, sizes = labels.unique(return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    turn = torch.arange(len(labels)) - starts  # of each image among those of its class
    if len(classes) > count:
        kept = classes[((torch.arange(count) + 0.5) * len(classes) / count).long()]
        turn = torch.where(torch.isin(labels[order], kept), turn, len(labels))
    return order[turn.argsort(stable=True)[:count]]
