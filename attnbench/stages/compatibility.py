"""Which objectives, samplers and model settings go together; needs no torch, so suites check it early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attnbench.errors import UserInputError
from attnbench.problems import Problem
from attnbench.specs import Case
from attnbench.yaml_source import show_path

SAMPLERS = {"ddpm": ("ddpm", "ddim", "dpm-solver++"), "flow": ("euler", "heun")}  # by training objective
STEPS = {"ddpm": (2, 1000), "ddim": (2, 1000), "dpm-solver++": (2, 999)}  # of 1000 trained timesteps


def check_objective(case: Case) -> None:
    """Raise UserInputError when the model cannot be trained with the chosen objective."""
    _raise_first(case, objective_problems(case))


def check_sampler(case: Case) -> None:
    """Raise UserInputError when objective, sampler, steps and guidance do not go together."""
    _raise_first(case, objective_problems(case))
    _raise_first(case, sampler_problems(case))


def _raise_first(case: Case, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise UserInputError(f"{case.label}: {show_path(problem.path)}: {problem.message}")


def objective_problems(case: Case) -> Iterator[Problem]:
    """Yield what keeps the model from being trained with the chosen objective."""
    if case.train.objective == "flow" and case.model.learned_variance:
        yield Problem(
            ("model", "learned_variance"),
            f"objective flow learns no variance, but the model {case.model.name!r} predicts one; set "
            "model.learned_variance: false, or train.objective: ddpm",
        )


def sampler_problems(case: Case) -> Iterator[Problem]:
    """Yield what keeps the trained model from being sampled as asked."""
    sample, model, allowed = case.sample, case.model, SAMPLERS[case.train.objective]
    if sample.sampler not in allowed:
        yield Problem(
            ("sample", "sampler"),
            f"sampler {sample.sampler!r} cannot sample a model trained with objective "
            f"{case.train.objective!r}; set sample.sampler to {' or '.join(allowed)}",
        )
    fewest, most = STEPS.get(sample.sampler, (1, sample.num_steps))
    if not fewest <= sample.num_steps <= most:
        yield Problem(
            ("sample", "num_steps"),
            f"sampler {sample.sampler!r} takes {fewest} to {most} steps, got {sample.num_steps}",
        )
    if sample.sampler == "heun" and sample.num_steps % 2 == 0:
        yield Problem(
            ("sample", "num_steps"),
            "sampler 'heun' makes two model evaluations for each step but the last, so an odd number, got "
            f"{sample.num_steps}; set {sample.num_steps + 1}",
        )
    if sample.guidance_channels != "all" and sample.guidance_channels > model.in_channels:
        yield Problem(
            ("sample", "guidance_channels"),
            f"must be 'all' or 1 to {model.in_channels}, the model's input channels, got "
            f"{sample.guidance_channels}",
        )
    if sample.guidance_scale != 1 and model.class_dropout == 0:
        yield Problem(
            ("model", "class_dropout"),
            f"guidance with scale {sample.guidance_scale} needs a model trained with dropped labels; set "
            "model.class_dropout above 0 (0.1 is usual), or sample.guidance_scale: 1",
        )
