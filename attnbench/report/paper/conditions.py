"""Under which settings a case was trained, sampled and scored: what two cases must share to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnbench.specs import OUTSIDE_KEY, EvaluateSpec, SampleSpec, Spec, TrainSpec

_NAMES_OF_A_MODEL = ("name", "summary", "source", "size", "published", "origin")
MEANT_TO_DIFFER = ("model.", "code.", "sample.guidance_scale")
_SPECS: dict[str, type[Spec]] = {"train": TrainSpec, "sample": SampleSpec, "evaluate": EvaluateSpec}
_CHANGE_NO_RESULT = {
    "train": ("log_every", "held_out_every", "held_out_images", "extra_ema_decays", "init_from"),
    "evaluate": ("metrics", "class_accuracy", "per_class", "weights"),
}
_STAGES = ("data", "train", "sample", "evaluate", "code")


def scored_settings(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a case's quality depends on, flat by dotted key, without its seed.

    A setting that was written down by no earlier version is its default.
    """
    kept: dict[str, Any] = {}
    for stage in _STAGES:
        found = case.get(stage)
        if isinstance(found, Mapping):
            fields = _SPECS[stage].model_fields.items() if stage in _SPECS else ()
            unwritten = {key: field.default for key, field in fields if not field.is_required()}
            silent = {*OUTSIDE_KEY.get(stage, ()), *_CHANGE_NO_RESULT.get(stage, ())}
            kept[stage] = {k: v for k, v in {**unwritten, **found}.items() if k not in silent}
    kept["initial"] = case.get("initial", "")  # the weights of train.init_from, wherever they lie
    kept["teacher"] = (case.get("teacher") or {}).get("identity", "")  # likewise of train.teacher
    model = case.get("model", {})
    kept["model"] = {key: value for key, value in model.items() if key not in _NAMES_OF_A_MODEL}
    return dict(_flat(kept, ""))


def settings_that_differ(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted keys in which cases differ, of what their quality depends on."""
    flat = [scored_settings(case) for case in cases]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat[1:])]


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif key != "label":
            yield f"{prefix}{key}", inner
