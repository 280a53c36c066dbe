"""From sample indices to images: a trained model with its sampler, guidance, labels, noise and decoder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from attnbench.diffusion.box_muller import BoxMullerNoise
from attnbench.diffusion.ddpm import Denoiser, GaussianDiffusion, space_timesteps
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.guidance import guided_denoiser
from attnbench.diffusion.noise import KeyedNoise, Noise, keyed_labels
from attnbench.diffusion.samplers import (
    SamplerStep,
    ddim_steps,
    ddpm_steps,
    dpm_solver_steps,
    euler_steps,
    heun_steps,
)
from attnbench.errors import NonFiniteError
from attnbench.specs import Case
from attnbench.stages.latents.model_space import Decoder
from attnbench.stages.sampling.decoding import DecodePipeline
from attnbench.stages.sampling.shards import Shard, ShardTimes
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.storage.store import Workspace


class Sampler:
    """A trained model with everything that turns sample indices into images."""

    def __init__(
        self, case: Case, workspace: Workspace, model: nn.Module, model_input: ModelInput, decode: Decoder
    ) -> None:
        self.case, self.workspace, self.model, self.decode = case, workspace, model, decode
        self.shape, self.num_classes = model_input.shape, model_input.num_classes
        self.device = workspace.device

    @property
    def total(self) -> int:
        """Images that the case asks for."""
        return self.case.sample.per_class * self.num_classes

    def labels(self, indices: range) -> torch.Tensor:
        """Return the class of each sample, int64 [n]."""
        if self.case.sample.labels == "random":
            return keyed_labels(self.case.seed, indices, self.num_classes)
        return torch.arange(indices.start, indices.stop) % self.num_classes

    def draw(self, indices: range) -> Shard:
        """Draw these samples, `sample.batch_size` at a time; raises NonFiniteError."""
        started, denoise_s, size = time.perf_counter(), 0.0, self.case.sample.batch_size
        with DecodePipeline(self.decode, self.device) as pipeline:
            for first in range(indices.start, indices.stop, size):
                batch = range(first, min(first + size, indices.stop))
                began = time.perf_counter()
                x = self.denoise(batch)
                denoise_s += time.perf_counter() - began
                pipeline.add(x)
                self.workspace.report("sample", batch.stop, self.total, "images")
            images = pipeline.images()
        total_s = time.perf_counter() - started
        times = ShardTimes(total_s=total_s, denoise_s=denoise_s, decode_s=pipeline.seconds)
        return Shard(images=images, labels=self.labels(indices).numpy(), times=times)

    @torch.inference_mode()
    def denoise(self, indices: range) -> torch.Tensor:
        """Return these samples in the model's input space, [n, C, H, W]; raises NonFiniteError."""
        (last,) = deque(self.steps(self.noise(indices), self.labels(indices).to(self.device)), maxlen=1)
        if not torch.isfinite(last.x).all():  # waits for the device, so that denoising is timed whole
            raise NonFiniteError(
                f"samples {indices.start} to {indices.stop - 1} hold NaN or infinity after {last.index + 1} "
                "model evaluations; use sample.precision: fp32, or train with a lower train.lr"
            )
        return last.x

    def noise(self, indices: Sequence[int]) -> Noise:
        """Return the noise of these samples, as the case's `sample.noise` has it."""
        settings, device = self.case.sample, self.device
        if settings.noise == "ziggurat":
            return KeyedNoise(seed=self.case.seed, indices=indices, shape=self.shape, device=device)
        asked = settings.num_steps if settings.sampler == "ddpm" else 1  # others ask for the start alone
        return BoxMullerNoise(
            seed=self.case.seed, indices=indices, shape=self.shape, device=device, num_steps=asked
        )

    def steps(self, noise: Noise, labels: torch.Tensor) -> Iterator[SamplerStep]:
        """Yield every model evaluation from noise to the model's input space; pixels keep x_0 in [-1, 1]."""
        settings, start = self.case.sample, noise.at(0)
        denoiser, count = self._denoiser(labels), settings.num_steps
        clip = self.case.model.input == "pixel"
        match settings.sampler:
            case "euler":
                return euler_steps(denoiser, RectifiedFlow(), start, num_steps=count)
            case "heun":
                return heun_steps(denoiser, RectifiedFlow(), start, num_evaluations=count)
            case "dpm-solver++":
                return dpm_solver_steps(denoiser, self._process(), start, num_steps=count, clip=clip)
            case "ddim":
                return ddim_steps(denoiser, self._process(space_timesteps(count)), start, clip=clip)
            case "ddpm":
                process = self._process(space_timesteps(count))
                return ddpm_steps(denoiser, process, start, lambda index: noise.at(index + 1), clip=clip)

    def _process(self, timesteps: list[int] | None = None) -> GaussianDiffusion:
        """Return the case's process, respaced where timesteps are given."""
        learned = self.case.model.learned_variance
        if timesteps is None:
            return GaussianDiffusion(learned_variance=learned, device=self.device)
        return GaussianDiffusion(learned_variance=learned, timesteps=timesteps, device=self.device)

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
