"""What a suite's schema cannot say: names that plugins provide, and settings that do not go together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from attnbench.data import class_names, most_images
from attnbench.errors import DataError, UnknownNameError, UserInputError
from attnbench.evaluation.requirements import extractor_problems, size_problems
from attnbench.models.options import read_options
from attnbench.models.resolution import input_size
from attnbench.plugins import Registry
from attnbench.problems import Problem
from attnbench.specs import Case, DigitsData, ImageFolderData, UserImages
from attnbench.stages.compatibility import objective_problems, sampler_problems
from attnbench.stages.latents.model_space import latent_problems
from attnbench.stages.training.initial_weights import why_not_from
from attnbench.yaml_source import KeyPath

DIGIT_SIDE = 8  # pixels of scikit-learn's digits


def name_problems(data: dict[str, Any], registry: Registry) -> Iterator[Problem]:
    """Yield unknown backends, options and extractors of one case, whatever else may be wrong in it."""
    model, evaluate = data.get("model"), data.get("evaluate")
    attention = model.get("attention") if isinstance(model, dict) else None
    if isinstance(attention, list):
        for index, entry in enumerate(attention):
            yield from _attention_problems(("model", "attention", index), entry, registry)
    else:
        yield from _attention_problems(("model", "attention"), attention, registry)
    extractor = evaluate.get("extractor") if isinstance(evaluate, dict) else None
    if isinstance(extractor, str) and extractor not in registry.extractors:
        error = UnknownNameError("extractor", extractor, registry.extractors)
        yield Problem(("evaluate", "extractor"), f"{error}{_broken_plugins(registry)}")


def case_problems(case: Case, registry: Registry) -> Iterator[Problem]:
    """Yield the settings of a case that are each fine and do not go together."""
    yield from _evaluation_problems(case, registry)
    yield from objective_problems(case)
    yield from sampler_problems(case)
    if case.train.timestep_density != "uniform" and case.train.objective != "flow":
        yield Problem(
            ("train", "timestep_density"),
            f"{case.train.timestep_density} needs objective flow, got {case.train.objective}",
        )
    ffn = case.model.ffn
    if ffn.hidden is not None and ffn.ratio != type(ffn).model_fields["ratio"].default:
        yield Problem(
            ("model", "ffn", "ratio"),
            f"{ffn.ratio} does nothing with ffn.hidden: {ffn.hidden}, which is the width itself; leave ratio "
            "out, or set ffn.hidden: null",
        )
    yield from _input_problems(case)
    yield from latent_problems(case)
    yield from _side_problems(case)
    yield from _initial_problems(case)


def _evaluation_problems(case: Case, registry: Registry) -> Iterator[Problem]:
    """What the stage `evaluate` would refuse after hours of training."""
    settings, data = case.evaluate, case.data
    for setting, message in extractor_problems(settings, registry.extractor(settings.extractor)):
        yield Problem(("evaluate", setting), message)
    if isinstance(data, ImageFolderData) and settings.reference == "held-out" and not data.held_out_fraction:
        yield Problem(
            ("evaluate", "reference"),
            "held-out: data.held_out_fraction is 0, so there are no such images; set it above 0, or set "
            "reference: train",
        )
        return
    for setting, message in _too_few_images(case):
        yield Problem(("evaluate", setting), message)


def _too_few_images(case: Case) -> Iterator[tuple[str, str]]:
    """Yield settings that ask for more images than there are, of the user's data where they are there."""
    settings, data = case.evaluate, case.data
    try:
        num_samples = case.sample.per_class * len(class_names(data))
        enough = max(2, settings.kd_subset_size, settings.neighbours + 1)  # a folder may hold millions
        real = min(most_images(data, settings.reference, enough), settings.reference_images)
        if any(size_problems(settings, num_samples, real)):
            every = min(most_images(data, settings.reference, sys.maxsize), settings.reference_images)
            yield from size_problems(settings, num_samples, every)
    except DataError:  # a run says what is wrong with it, and a suite needs no data to be valid
        return


def _attention_problems(path: KeyPath, spec: Any, registry: Registry) -> Iterator[Problem]:
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return  # the schema says what is wrong
    if spec["name"] not in registry.backends:
        error = UnknownNameError("backend", spec["name"], registry.backends)
        yield Problem((*path, "name"), f"{error}{_broken_plugins(registry)}")
        return
    options = spec.get("options", {})
    if isinstance(options, dict):
        _, problems = read_options(registry.backend(spec["name"]), options)
        for problem in problems:
            yield Problem((*path, "options", *problem.path), problem.message)


def _broken_plugins(registry: Registry) -> str:
    broken = [row.name for row in registry.rows if row.status == "broken"]
    return f" (broken plugins, see `attnbench list plugins`: {', '.join(broken)})" if broken else ""


def _input_problems(case: Case) -> Iterator[Problem]:
    """Pixels or latents, and their channels."""
    model, data = case.model, case.data
    codec = data.codec if isinstance(data, UserImages) else None
    if model.input == "latent":
        if not isinstance(data, UserImages):
            yield Problem(
                ("model", "input"),
                f"{model.name} works on latents, which {data.name} does not have; take a recipe on pixels "
                "(tiny-dit, tiny-dit-rgb), or data: prepared or image-folder with a codec",
            )
        elif codec is None:
            advice = "set data.codec.path or data.codec.hub, or model.input: pixel with model.in_channels: 3"
            yield Problem(("data", "codec"), f"is missing: {model.name} works on latents; {advice}")
        return
    if case.profile.scope == "end-to-end":
        yield Problem(
            ("profile", "scope"),
            f"end-to-end is with an autoencoder's decoding: {model.name} works on pixels; set model",
        )
    if codec is not None:
        yield Problem(
            ("data", "codec"),
            f"would not be used: {model.name} works on pixels; remove it, or set model.input: latent",
        )
    channels = 1 if isinstance(data, DigitsData) else 3
    if model.in_channels != channels:
        message = f"must be {channels}, the channels of {data.name}, got {model.in_channels} ({model.name})"
        yield Problem(("model", "in_channels"), message)


def _side_problems(case: Case) -> Iterator[Problem]:
    """Image sides that do not cut into patches; those of latents are `latent_problems`'s."""
    model, data = case.model, case.data
    if model.input == "latent":
        return
    sides: list[tuple[KeyPath, int]] = []
    if isinstance(data, DigitsData):
        sides.append((("model", "patch_size"), DIGIT_SIDE))
    else:
        sides.append((("data", "image_size"), data.image_size))
    for index, side in enumerate(case.profile.resolutions or ()):
        sides.append((("profile", "resolutions", index), side))
    for path, side in sides:
        try:
            input_size(model, side)
        except UserInputError as error:
            yield Problem(path, str(error))


def _initial_problems(case: Case) -> Iterator[Problem]:
    """Weights to start from that are another model's, or of other classes or sizes, where they are there."""
    folder = case.train.init_from
    if folder is None or not folder.exists():
        return
    try:
        side = input_size(case.model, case.data.image_size)
    except UserInputError:  # said already
        side = None
    growth = case.train.growth
    reason = why_not_from(folder, case.model, side=side, num_classes=_num_classes(case), growth=growth)
    if reason is not None:
        yield Problem(("train", "init_from"), reason)


def _num_classes(case: Case) -> int | None:
    """Return the number of the data's classes, or None where the user's folder cannot tell it yet."""
    try:
        return len(class_names(case.data))
    except DataError:  # a run says what is wrong with it, and a suite needs no data to be valid
        return None
