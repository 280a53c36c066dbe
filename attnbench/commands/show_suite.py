"""What `attnbench show SUITE` says of a suite: its cases, what they compute and read, what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from attnbench.specs import Case, UserImages, content_hash
from attnbench.suite.loading import Suite, of_cases

CASE_COLUMNS = ("case", "parameters", "MACs per image", "MACs of the training", "MACs of the samples")
Facts = tuple[tuple[str, str], ...]


def suite_facts(suite: Suite) -> Facts:
    """Return the question, and each part of the settings as one line; where cases differ, one a kind."""
    cases = suite.cases
    parts: tuple[tuple[str, Callable[[Case], str]], ...] = (
        ("model", _model),
        ("data", _data),
        ("training", _training),
        ("sampling", _sampling),
        ("scored by", _evaluation),
        ("profiled", _profile),
        *((("looked into", _diagnosis),) if any(case.diagnose for case in cases) else ()),
    )
    axes = {name: len({case.axes.get(name) for case in cases}) for case in cases for name in case.axes}
    varied = f" ({', '.join(f'{name}: {count}' for name, count in axes.items())})" if axes else ""
    return (
        ("question", suite.question or "none is asked"),
        ("file", str(suite.path)),
        ("cases", f"{len(cases)}{varied}"),
        *(fact for title, say in parts for fact in _said_once(title, say, cases)),
        *_missing(cases),
        ("what it takes", f"`attnbench plan {suite.path}` estimates time and disk on this machine"),
    )


def case_rows(suite: Suite) -> tuple[tuple[str, ...], ...]:
    """Return a row for each case: parameters, and multiply-adds in the full count of every product.

    Training: three passes' worth (forward, and twice that backward) of every image of every step, and the
    teacher's pass where one is made. Samples: two passes each where they are guided.
    """
    known: dict[str, tuple[str, ...]] = {}  # seeds share a model
    rows = []
    for case in suite.cases:
        key = content_hash(
            [
                case.model_dump(mode="json", include={"model", "data", "train", "sample"}),
                case.code,
                case.teacher.identity if case.teacher is not None else None,
            ]
        )
        if key not in known:
            known[key] = _compute(case)
        rows.append((case.label, *known[key]))
    return tuple(rows)


def _compute(case: Case) -> tuple[str, ...]:
    from attnbench.running.estimates import closed_form, model_side, num_classes, num_params, training_macs

    try:
        full, classes = closed_form(case).full, num_classes(case)
        training = training_macs(case)
        parameters = num_params(case.model, model_side(case), classes)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's backend may raise anything
        return ("cannot be built", " ".join(str(error).split()), "", "")
    passes = case.sample.num_steps * (1 if case.sample.guidance_scale == 1 else 2)
    return (
        _amount(parameters),
        _amount(full),
        _amount(training),
        _amount(full * passes * case.sample.per_class * classes),
    )


def _amount(number: float) -> str:
    """Return a count in the unit that leaves one to three digits before the point.

    >>> _amount(723_000), _amount(5.6e9), _amount(2.43e18)
    ('723 k', '5.60 G', '2.43 E')
    """
    unit = ""
    for larger in ("k", "M", "G", "T", "P", "E", "Z"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    places = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{places}f} {unit}" if unit else f"{number:g}"


def _said_once(title: str, say: Callable[[Case], str], cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Return what is said of all cases, or of each kind of them with the cases it is for."""
    kinds: dict[str, list[str]] = {}
    for case in cases:
        kinds.setdefault(say(case), []).append(case.label)
    if len(kinds) == 1 or say is _model:  # a model's name says whose it is
        return [(title, text) for text in kinds]
    return [(title, f"{of_cases(labels, len(cases))}: {text}") for text, labels in kinds.items()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _model(case: Case) -> str:
    model, patch = case.model, f"{case.model.patch_size} x {case.model.patch_size}"
    return (
        f"{model.name}: {_count(model.depth, 'block')} of width {model.dim}, "
        f"{_count(model.num_heads, 'head')}, patches of {patch}, on {model.input}s of "
        f"{_count(model.in_channels, 'channel')}"
    )


def _data(case: Case) -> str:
    from attnbench.running.estimates import num_classes, num_images

    data = case.data
    said = f"{data.name} at {data.image_size} px"
    if not isinstance(data, UserImages):
        return f"{said}, {num_classes(case)} classes, from an installed package"
    codec = data.codec
    latents = f", latents of {codec.hub or codec.path}" if codec is not None else ""
    if not data.path.is_dir():
        return f"{said}: {data.path}, which is not there; taken for {num_classes(case)} classes{latents}"
    return f"{said}: {data.path}, {num_images(case):,} files of {num_classes(case)} classes{latents}"


def _training(case: Case) -> str:
    train = case.train
    start = f", from {train.init_from}" if train.init_from else ""
    if train.growth is not None:
        start += f", grown by {train.growth.strategy}"
    if train.teacher is not None:
        own = case.teacher.trains_here if case.teacher is not None else None
        start += f", taught by {train.teacher.model if own is None else own.label}"
        start += f", of which it inherits {train.teacher.inherit}"
    return (
        f"{train.objective}, {train.steps:,} steps of {train.batch_size} images, lr {train.lr:g}, "
        f"{train.precision}, average with decay {train.ema_decay:g}{start}"
    )


def _sampling(case: Case) -> str:
    sample = case.sample
    guided = "no guidance" if sample.guidance_scale == 1 else f"guidance {sample.guidance_scale:g}"
    return f"{sample.per_class} images a class, {sample.sampler}, {sample.num_steps} steps, {guided}"


def _evaluation(case: Case) -> str:
    asked = case.evaluate
    return f"{', '.join(asked.metrics)} of {asked.extractor}, against {asked.reference} images"


def _profile(case: Case) -> str:
    asked = case.profile
    sides = ", ".join(map(str, asked.resolutions or [case.data.image_size]))
    return f"{', '.join(asked.measure)} of {asked.scope}, {asked.mode}, at {sides} px"


def _diagnosis(case: Case) -> str:
    asked: dict[str, Any] = case.diagnose.model_dump(mode="json") if case.diagnose else {}
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in asked.items()) or "not"


def _missing(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Return what of the user's is not there, each once with its cases, or that nothing is missing."""
    from attnbench.running.needs import missing_inputs

    found: dict[str, list[str]] = {}
    for case in cases:
        for text in missing_inputs(case):
            found.setdefault(text, []).append(case.label)
    said = [("missing", f"{of_cases(labels, len(cases))}: {text}") for text, labels in found.items()]
    return said or [("missing", "nothing")]
