"""What rows may differ in beside their attention: their settings, images, seeds and models, as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.report.configurations import Configuration
from attnbench.report.quantities import is_quality
from attnbench.results import Result
from attnbench.specs import (
    OUTSIDE_KEY,
    UNWRITTEN_NOISE,
    DecoupledSpec,
    EvaluateSpec,
    GrowthSpec,
    MoeSpec,
    ProfileSpec,
    SampleSpec,
    Spec,
    TrainSpec,
)

_SPECS: dict[str, type[Spec]] = {
    "train": TrainSpec,
    "sample": SampleSpec,
    "evaluate": EvaluateSpec,
    "profile": ProfileSpec,
}
SETTINGS = {
    "data.name": "data",
    "train.init_from": "initial weights",
    "train.teacher": "teacher",
    "train.steps": "training steps",
    "train.batch_size": "images per training step",
    "train.precision": "precision in training",
    "sample.guidance_scale": "guidance scale",
    "sample.sampler": "sampler",
    "sample.num_steps": "sampling steps",
    "sample.per_class": "images per class",
    "sample.precision": "precision in sampling",
    "sample.noise": "noise of the samples",
    "evaluate.extractor": "extractor",
    "evaluate.reference": "images compared with",
}
_CHANGE_NO_RESULT = {
    *(f"{stage}.{name}" for stage, names in OUTSIDE_KEY.items() for name in names),
    *(f"train.{name}" for name in ("log_every", "held_out_every", "held_out_images", "extra_ema_decays")),
    "train.teacher.label",
    *(f"evaluate.{name}" for name in ("metrics", "class_accuracy", "per_class", "weights")),
    *(f"profile.{name}" for name in ("measure", "rounds", "interval", "timeout_s")),
}
_ONLY_ROUNDING = ("train.grad_accumulation", "train.compile", "sample.compile")
_ANOTHER_DRAW = ("sample.noise",)  # as other seeds are: of the same distribution
_PARTS: dict[str, type[Spec]] = {
    "train.growth": GrowthSpec,
    "model.decoupled": DecoupledSpec,
    "model.ffn.moe": MoeSpec,
}
"""Settings of several parts that may be null: then each part is, so that all rows tell of the same parts."""
_NO_PART_OF_A_MODEL = ("name", "summary", "source", "size", "published", "origin", "attention")


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One thing that rows may differ in, as text; None where a row does not say."""

    name: str
    values: list[str | None]
    ranked: bool


def settings_of(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the settings that can change a result, as (dotted name, text); where unwritten, the default."""
    for section in ("data", "train", "sample", "evaluate", "profile", "model"):
        settings = result.case.get(section)
        if not isinstance(settings, dict):
            continue
        if section == "train" and result.case.get("initial"):
            settings = {**settings, "init_from": result.case["initial"]}  # what is in it, wherever it lies
        if section == "model":
            settings = {key: value for key, value in settings.items() if key not in _NO_PART_OF_A_MODEL}
            ffn = settings.get("ffn")
            settings = {"decoupled": None} | settings
            if isinstance(ffn, dict):
                settings["ffn"] = {"moe": None} | ffn
        if spec := _SPECS.get(section):
            fields = spec.model_fields.items()
            settings = {key: f.default for key, f in fields if not f.is_required()} | settings
        for name, text in _leaves(settings, section):
            if name not in _CHANGE_NO_RESULT:
                yield name, text


def noise_of(result: Result) -> str | None:
    """Return the noise that a result's samples start from, as `settings_of` does; None where it has none."""
    sample = result.case.get("sample")
    return str(sample.get("noise", UNWRITTEN_NOISE)) if isinstance(sample, dict) else None


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if value is None and name in _PARTS:
        value = dict.fromkeys(_PARTS[name].model_fields)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 2 and 2.0 are one guidance scale
    return value if isinstance(value, str) else json.dumps(value, default=str)


def concerns_quality(name: str) -> bool:
    """Whether quality does not compare between rows that differ in this setting."""
    return name.startswith(("data.", "train.", "sample.", "evaluate.")) and name not in (
        *_ONLY_ROUNDING,
        *_ANOTHER_DRAW,
    )


def axis_of(name: str, rows: Sequence[Configuration]) -> str | None:
    """Return the axis of the suite that varies a setting; axes are named by the end of what they vary."""
    axes = dict.fromkeys(axis for row in rows for axis in row.results[0].axes)
    return next((axis for axis in axes if f".{axis}." in f".{name}."), None)


def images_of(rows: Sequence[Configuration]) -> Aspect:
    """Return how many images stand behind each row's quality."""
    values = []
    for row in rows:
        counts = {m.n for r in row.results for m in r.measurements if is_quality(m.name) and m.n}
        values.append(" and ".join(f"{n:,}" for n in sorted(counts)) or None)
    return Aspect(name="images scored", values=values, ranked=False)


def seeds_of(rows: Sequence[Configuration]) -> Aspect:
    """Return the seeds that each row was to run with."""
    return Aspect(name="seeds", values=[", ".join(map(str, row.seeds)) for row in rows], ranked=True)


def machines_of(rows: Sequence[Configuration]) -> Aspect:
    """Return where each row ran, as far as its times and memory depend on it."""
    values = []
    for environment in (row.results[0].environment for row in rows):
        device = environment.cpu if environment.device == "cpu" else environment.device
        torch = environment.packages.get("torch", "")
        values.append(f"{device}, {environment.threads} threads, torch {torch}")
    return Aspect(name="machine", values=list(values), ranked=True)


def models_of(settings: Sequence[dict[str, str]], names: Sequence[str]) -> Aspect:
    """Return each row's model beside its attention, as far as the rows differ there."""
    values = [
        ", ".join(f"{n.removeprefix('model.')} {s[n]}" for n in names if n in s) or None for s in settings
    ]
    return Aspect(name="model beside its attention:", values=values, ranked=True)


def differ(values: Sequence[str | None]) -> bool:
    return len({value for value in values if value is not None}) > 1
