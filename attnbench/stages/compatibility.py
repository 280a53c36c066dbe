"""Which objectives, samplers and model settings go together; needs no torch, so suites check it early."""

from __future__ import annotations

from attnbench.errors import UserInputError
from attnbench.specs import Case

SAMPLERS = {"ddpm": ("ddpm", "ddim", "dpm-solver++"), "flow": ("euler", "heun")}  # by training objective
STEPS = {"ddpm": (2, 1000), "ddim": (2, 1000), "dpm-solver++": (2, 999)}  # of 1000 trained timesteps


def check_objective(case: Case) -> None:
    """Raise UserInputError when the model cannot be trained with the chosen objective."""
    if case.train.objective == "flow" and case.model.learned_variance:
        raise UserInputError(
            f"{case.label}: objective flow learns no variance, but the model {case.model.name!r} "
            "predicts one; set model.learned_variance: false, or train.objective: ddpm"
        )


def check_sampler(case: Case) -> None:
    """Raise UserInputError when objective, sampler, steps and guidance do not go together."""
    check_objective(case)
    sample, allowed = case.sample, SAMPLERS[case.train.objective]
    if sample.sampler not in allowed:
        raise UserInputError(
            f"{case.label}: sampler {sample.sampler!r} cannot sample a model trained with objective "
            f"{case.train.objective!r}; set sample.sampler to {' or '.join(allowed)}"
        )
    _check_steps(case)
    _check_guidance(case)


def _check_steps(case: Case) -> None:
    sample = case.sample
    fewest, most = STEPS.get(sample.sampler, (1, sample.num_steps))
    if not fewest <= sample.num_steps <= most:
        raise UserInputError(
            f"{case.label}: sampler {sample.sampler!r} takes {fewest} to {most} steps, "
            f"got sample.num_steps={sample.num_steps}"
        )
    if sample.sampler == "heun" and sample.num_steps % 2 == 0:
        raise UserInputError(
            f"{case.label}: sampler 'heun' makes two model evaluations for each step but the last, so an odd "
            f"number, got sample.num_steps={sample.num_steps}; set {sample.num_steps + 1}"
        )


def _check_guidance(case: Case) -> None:
    sample, model = case.sample, case.model
    if sample.guidance_channels != "all" and sample.guidance_channels > model.in_channels:
        raise UserInputError(
            f"{case.label}: sample.guidance_channels must be 'all' or 1 to {model.in_channels}, "
            f"the model's input channels, got {sample.guidance_channels}"
        )
    if sample.guidance_scale != 1 and model.class_dropout == 0:
        raise UserInputError(
            f"{case.label}: guidance with scale {sample.guidance_scale} needs a model trained with dropped "
            "labels; set model.class_dropout above 0 (0.1 is usual), or sample.guidance_scale: 1"
        )
