"""Stage `sample`: images from the averaged weights, in shards; sample `index` has class `index % K`.

Classes take turns so that the first images cover all of them. Noise belongs to (seed, index), so
every backend starts from the same noise and the batch size changes no picture by more than rounding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from attnbench.data import load_dataset
from attnbench.diffusion.ddpm import Denoiser, GaussianDiffusion, space_timesteps
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.guidance import guided_denoiser
from attnbench.diffusion.noise import KeyedNoise
from attnbench.diffusion.samplers import SamplerStep, ddim_steps, ddpm_steps, euler_steps
from attnbench.errors import NonFiniteError
from attnbench.models import build_model, fuse_for_inference
from attnbench.results import Measurement
from attnbench.specs import Case
from attnbench.stages.checkpoint import ModelInput, load_averaged, load_into
from attnbench.stages.compatibility import check_sampler
from attnbench.stages.grid import MAX_COLUMNS, MAX_ROWS, write_grid
from attnbench.stages.prepare import Decoder, decoder
from attnbench.stages.shards import Shard, read_images, read_shard, shard_path, shard_ranges, write_shard
from attnbench.stages.store import StageOutput, Workspace, read_output, write_output
from attnbench.stages.train import AVERAGED, fork_rng

GRID = "grid.png"


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Draw the case's samples, or return what an earlier run finished; resumes shard by shard.

    Raises UserInputError, CheckpointError, NonFiniteError or StorageError.
    """
    folder = workspace.folder("sample", case)
    finished = read_output(folder)
    if finished is not None:
        return finished
    check_sampler(case)
    sampler = load_sampler(case, workspace)
    total = case.sample.per_class * sampler.num_classes
    shards = shard_ranges(total)
    seconds = []
    for number, indices in enumerate(shards):
        shard = read_shard(shard_path(folder, number), len(indices))
        if shard is None:
            shard = draw_shard(sampler, indices, total)
            write_shard(shard_path(folder, number), shard)
        seconds.append(shard.seconds)
    chosen = grid_indices(sampler.num_classes, case.sample.per_class)
    columns = min(MAX_COLUMNS, case.sample.per_class)
    write_grid(folder / GRID, read_images(folder, chosen), num_columns=columns)
    output = _describe(seconds, [len(indices) for indices in shards])
    write_output(folder, output)
    return output


def load_sampler(case: Case, workspace: Workspace) -> Sampler:
    """Load the averaged weights of a finished training into an inference model; raises CheckpointError."""
    path = workspace.folder("train", case) / AVERAGED
    weights, model_input = load_averaged(path, case.key("train"))
    with fork_rng(workspace.device):
        model = build_model(
            config=case.model, input_size=model_input.shape[1], num_classes=model_input.num_classes
        )
    load_into(model, weights, path)
    fused = fuse_for_inference(model.to(workspace.device).eval())
    decode = decoder(case, load_dataset(case.data), workspace)
    return Sampler(case, workspace, fused, model_input, decode)


def draw_shard(sampler: Sampler, indices: range, total: int) -> Shard:
    """Draw the samples of one shard, `sample.batch_size` at a time."""
    started = time.perf_counter()
    images = []
    size = sampler.case.sample.batch_size
    for first in range(indices.start, indices.stop, size):
        last = min(first + size, indices.stop)
        images.append(sampler.draw(range(first, last)))
        sampler.workspace.report("sample", last, total, "images")
    labels = sampler.labels(indices).numpy()
    return Shard(images=np.concatenate(images), labels=labels, seconds=time.perf_counter() - started)


class Sampler:
    """A trained model with everything that turns sample indices into images."""

    def __init__(
        self, case: Case, workspace: Workspace, model: nn.Module, model_input: ModelInput, decode: Decoder
    ) -> None:
        self.case, self.workspace, self.model, self.decode = case, workspace, model, decode
        self.shape, self.num_classes = model_input.shape, model_input.num_classes
        self.device = workspace.device

    def labels(self, indices: range) -> torch.Tensor:
        """Return the class of each sample, int64 [n]."""
        return torch.arange(indices.start, indices.stop) % self.num_classes

    @torch.inference_mode()
    def draw(self, indices: range) -> np.ndarray:
        """Return the images of these samples, uint8 [n, H, W, C]; raises NonFiniteError."""
        noise = KeyedNoise(
            seed=self.case.seed, indices=indices, shape=self.shape, device=self.device, purpose="sample"
        )
        (last,) = deque(self.steps(noise, self.labels(indices).to(self.device)), maxlen=1)
        if not torch.isfinite(last.x).all():
            raise NonFiniteError(
                f"samples {indices.start} to {indices.stop - 1} hold NaN or infinity after {last.index + 1} "
                "sampling steps; use sample.precision: fp32, or train with a lower train.lr"
            )
        return self.decode(last.x).cpu().numpy()

    def steps(self, noise: KeyedNoise, labels: torch.Tensor) -> Iterator[SamplerStep]:
        """Yield every step from noise to the model's input space; pixels keep x_0 in [-1, 1]."""
        settings, start = self.case.sample, noise.at(0)
        denoiser = self._denoiser(labels)
        if settings.sampler == "euler":
            return euler_steps(denoiser, RectifiedFlow(), start, num_steps=settings.num_steps)
        process = GaussianDiffusion(
            learned_variance=self.case.model.learned_variance,
            timesteps=space_timesteps(settings.num_steps),
            device=self.device,
        )
        clip = self.case.model.input == "pixel"
        if settings.sampler == "ddim":
            return ddim_steps(denoiser, process, start, clip=clip)
        return ddpm_steps(denoiser, process, start, lambda index: noise.at(index + 1), clip=clip)

    def _denoiser(self, labels: torch.Tensor) -> Denoiser:
        settings = self.case.sample
        guided = guided_denoiser(
            self.model,
            labels,
            null_label=self.num_classes,
            scale=settings.guidance_scale,
            channels=settings.guidance_channels,
        )
        bf16 = settings.precision == "bf16"

        def denoise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                output = guided(x, time)
            return output.to(x.dtype)

        return denoise


def grid_indices(num_classes: int, per_class: int) -> list[int]:
    """Return the sample indices of the grid, row by row: the first images of the first classes."""
    columns = range(min(MAX_COLUMNS, per_class))
    return [column * num_classes + row for row in range(min(MAX_ROWS, num_classes)) for column in columns]


def _describe(seconds: list[float], images: list[int]) -> StageOutput:
    rates = [n / s for n, s in zip(images, seconds, strict=True)]
    measurements = [
        Measurement(name="sample_time_s", unit="s", values=[sum(seconds)], n=sum(images), better="lower"),
        Measurement(
            name="images_per_s", unit="1/s", values=rates, n=sum(images), better="higher", note="per shard"
        ),
    ]
    return StageOutput(measurements=measurements, artefacts={"grid": GRID})
