"""One pass of a workload as a callable: forward, training step or sampler step, of a model or of its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from attnbench.contract import AttentionContext
from attnbench.diffusion.ddpm import GaussianDiffusion, space_timesteps
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.guidance import guided_denoiser
from attnbench.diffusion.objective import DdpmObjective, FlowObjective
from attnbench.diffusion.samplers import ddim_steps, euler_steps
from attnbench.errors import UnsupportedError
from attnbench.models import build_model, fuse_for_inference
from attnbench.models.skeleton import Block, DiffusionTransformer
from attnbench.profiling.protocol import Workload

Decode = Callable[[torch.Tensor], object]
GUIDANCE_SCALE = 1.5  # any but 1 doubles the batch; the value itself costs nothing
STEPS = 50  # of the sampler whose first step is taken; the number itself costs nothing


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What is timed. `run` does it once and returns the tensor whose numbers must be finite."""

    module: nn.Module
    """Holds the weights that one pass uses."""
    run: Callable[[], torch.Tensor]


def build_pass(
    workload: Workload, device: torch.device, decode: Decode | None = None, *, compiled: bool = False
) -> Pass:
    """Build the model of a workload and return its pass on N(0, 1) inputs.

    Weights are in fp32 and bf16 is autocast's, as in training and sampling. Without training,
    re-parameterised parts are fused and no graph is kept. `decode` turns latents into images, for the scope
    end-to-end; `compiled` compiles the model, or its part, as training does. Raises UnsupportedError where
    mode and scope do not go together.
    """
    model = build_trained(workload, device)
    _fill_zero_parameters(model)
    return pass_of(workload, in_form_of(workload, model), device, decode, compiled=compiled)


def build_trained(workload: Workload, device: torch.device) -> DiffusionTransformer:
    """Build the model of a workload in the form in which it is trained."""
    torch.manual_seed(workload.seed)
    return build_model(
        workload.config, workload.input_size, workload.num_classes, seed=workload.seed, device=device
    )


def in_form_of(workload: Workload, model: DiffusionTransformer) -> DiffusionTransformer:
    """Return a model in the form its mode needs: without training, fused and without gradients."""
    if workload.mode == "train":
        return model
    return cast("DiffusionTransformer", fuse_for_inference(model)).requires_grad_(False)


def pass_of(
    workload: Workload,
    model: DiffusionTransformer,
    device: torch.device,
    decode: Decode | None = None,
    *,
    compiled: bool = False,
) -> Pass:
    """Return the pass of a model that is built already, on N(0, 1) inputs; also under fake tensors."""
    inputs = _Inputs(workload, device)
    if workload.scope in ("attention", "block"):
        return _part_of_block(workload, model, inputs, compiled)
    called = cast("DiffusionTransformer", torch.compile(model) if compiled else model)
    run = {"forward": _forward, "train": _training_step, "sample": _sampler_step}[workload.mode](
        workload, called, inputs
    )
    if workload.scope == "end-to-end":
        return Pass(module=model, run=_then_decoded(workload, run, decode))
    return Pass(module=model, run=run)


def _then_decoded(
    workload: Workload, run: Callable[[], torch.Tensor], decode: Decode | None
) -> Callable[[], torch.Tensor]:
    if workload.mode == "train":
        raise UnsupportedError("mode train decodes no images; scope end-to-end goes with forward and sample")
    if decode is None:
        raise UnsupportedError(
            "scope end-to-end needs the model's autoencoder, which is not named; name it (--autoencoder; "
            "in a suite: data.codec), or take scope model for a model on pixels"
        )

    def decoded() -> torch.Tensor:
        latents = run()[:, : workload.config.in_channels]  # a learned variance stands behind the mean
        decode(latents)
        return latents

    return decoded


class _Inputs:
    """Random inputs of a model: x [B, C, H, W], t [B], y int64 [B]."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        config, num, side = workload.config, workload.batch_size, workload.input_size
        self.device = device
        self.x = torch.randn(num, config.in_channels, side, side).to(device)
        # one timestep for all images, as in sampling; the last one, where attentions that follow it cost most
        self.t = torch.ones(num, device=device)
        self.y = (torch.arange(num) % workload.num_classes).to(device)

    def autocast(self, workload: Workload) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=workload.precision == "bf16")


def _forward(workload: Workload, model: DiffusionTransformer, inputs: _Inputs) -> Callable[[], torch.Tensor]:
    @torch.inference_mode()
    def run() -> torch.Tensor:
        with inputs.autocast(workload):
            return cast("torch.Tensor", model(inputs.x, inputs.t, inputs.y))

    return run


def _sampler_step(
    workload: Workload, model: DiffusionTransformer, inputs: _Inputs
) -> Callable[[], torch.Tensor]:
    """One step of DDIM (models with a learned variance) or Euler, guided: the batch is doubled."""
    guided = guided_denoiser(model, inputs.y, null_label=model.null_label, scale=GUIDANCE_SCALE)

    def denoiser(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        with inputs.autocast(workload):
            output = guided(x, time)
        return output.to(x.dtype)

    learned = workload.config.learned_variance
    process = GaussianDiffusion(
        learned_variance=learned, timesteps=space_timesteps(STEPS), device=inputs.device
    )

    @torch.inference_mode()
    def run() -> torch.Tensor:
        if learned:
            return next(ddim_steps(denoiser, process, inputs.x, clip=False)).x
        return next(euler_steps(denoiser, RectifiedFlow(), inputs.x, num_steps=STEPS)).x

    return run


def _training_step(
    workload: Workload, model: DiffusionTransformer, inputs: _Inputs
) -> Callable[[], torch.Tensor]:
    """Forward, backward and a step of AdamW on the objective of the model's kind."""
    model.train()
    optimizer = _adamw(model, inputs.device)
    learned = workload.config.learned_variance
    objective: DdpmObjective | FlowObjective
    if learned:
        objective = DdpmObjective(learned_variance=True, device=inputs.device)
    else:
        objective = FlowObjective(density="uniform")
    times = objective.spread_times(workload.batch_size).to(inputs.device)
    noise = torch.randn_like(inputs.x)

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with inputs.autocast(workload):
            return cast("torch.Tensor", model(x, t, inputs.y, loss_sink=_ignore))

    def run() -> torch.Tensor:
        loss = objective.losses(denoiser, inputs.x, times, noise).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def _part_of_block(workload: Workload, model: DiffusionTransformer, inputs: _Inputs, compiled: bool) -> Pass:
    """Return the pass of the middle block, or of its attention, on N(0, 1) tokens [B, N, C]."""
    if workload.mode == "sample":
        raise UnsupportedError(f"mode sample runs whole models; scope {workload.scope} does not go with it")
    config = workload.config
    layer_idx = config.depth // 2
    block = cast("Block", model.blocks[layer_idx])
    part: nn.Module = block.attn if workload.scope == "attention" else block
    decodes = workload.scope == "block" and layer_idx >= config.encoder_depth
    called = torch.compile(part) if compiled else part
    tokens = torch.randn(workload.batch_size, model.grid[0] * model.grid[1], config.dim).to(inputs.device)
    context = AttentionContext(
        grid=model.grid,
        timestep=inputs.t,
        conditioning=torch.randn(workload.batch_size, config.dim).to(inputs.device),
        layer_idx=layer_idx,
        loss_sink=_ignore if workload.mode == "train" else None,
    )
    condition = (torch.randn_like(tokens),) if decodes else ()

    def forward() -> torch.Tensor:
        with inputs.autocast(workload):
            return cast("torch.Tensor", called(tokens, context, *condition))

    if workload.mode == "forward":
        return Pass(module=part, run=torch.inference_mode()(forward))
    part.train()
    tokens.requires_grad_(True)  # as inside a model, where the blocks before want their gradients
    optimizer = _adamw(part, inputs.device)

    def step() -> torch.Tensor:
        output = forward()
        output.backward(torch.ones_like(output))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens.grad = None
        return output.detach()

    return Pass(module=part, run=step)


def _adamw(module: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """Return the optimizer of training; a step that changes next to nothing costs the same.

    Capturable: on a GPU its step count lies on the device, where a CUDA graph can count on.
    """
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=1e-6,
        betas=(0.9, 0.999),
        fused=True,
        capturable=device.type == "cuda",
    )


def _ignore(name: str, value: torch.Tensor) -> None:
    """Take a loss or a diagnostic and forget it."""


def _fill_zero_parameters(model: nn.Module) -> None:
    """Zero-initialised layers (AdaLN-Zero) would time products with zeros, which run faster."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
