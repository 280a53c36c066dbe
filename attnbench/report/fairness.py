"""Whether rows are alike: what they differ in beside their attention, as footnotes, and which compare."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnbench.report.configurations import Configuration, configurations
from attnbench.report.latency import baseline
from attnbench.report.quantities import MACS, SIZE, Quantity, is_quality, main_resolution
from attnbench.report.tables import plain
from attnbench.results import Result
from attnbench.specs import OUTSIDE_KEY, EvaluateSpec, ProfileSpec, SampleSpec, Spec, TrainSpec

TOLERANCE = 0.02
"""Parameters and MACs this close count as equal: what rounding widths to whole heads costs."""

_SPECS: dict[str, type[Spec]] = {
    "train": TrainSpec,
    "sample": SampleSpec,
    "evaluate": EvaluateSpec,
    "profile": ProfileSpec,
}
_NAMES = {
    "data.name": "data",
    "train.init_from": "initial weights",
    "train.steps": "training steps",
    "train.batch_size": "images per training step",
    "train.precision": "precision in training",
    "sample.guidance_scale": "guidance scale",
    "sample.sampler": "sampler",
    "sample.num_steps": "sampling steps",
    "sample.per_class": "images per class",
    "sample.precision": "precision in sampling",
    "evaluate.extractor": "extractor",
    "evaluate.reference": "images compared with",
}
_CHANGE_NO_RESULT = {
    *(f"{stage}.{name}" for stage, names in OUTSIDE_KEY.items() for name in names),
    *(f"train.{name}" for name in ("log_every", "held_out_every", "held_out_images", "extra_ema_decays")),
    *(f"evaluate.{name}" for name in ("metrics", "class_accuracy", "per_class", "weights")),
    *(f"profile.{name}" for name in ("measure", "rounds", "interval", "timeout_s")),
}
_ONLY_ROUNDING = ("train.grad_accumulation", "train.compile", "sample.compile")
_NO_PART_OF_A_MODEL = ("name", "summary", "source", "size", "published", "origin", "attention")
_FEW = 4  # labels or seeds that a footnote lists
_LONGEST = 60  # characters of a setting in a footnote


@dataclass(frozen=True, kw_only=True)
class Footnote:
    """One thing that rows differ in, beside their attention."""

    mark: str
    """`a`, `b` and so on."""
    aspect: str
    """What differs, such as `training steps`."""
    text: str
    """The whole footnote without its mark."""
    rows: tuple[int, ...]
    """The rows that are not like the others; all that have the thing where no value is the usual one."""
    ranked: bool
    """Whether they are compared with the others all the same."""

    @property
    def note(self) -> str:
        """The footnote as it stands below a table, its mark first."""
        return f"{self.mark}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """What may be compared with what in a table."""

    footnotes: tuple[Footnote, ...]
    quality: tuple[int, ...]
    """Of each row the number of its group: rows of one group are trained, sampled and scored alike."""
    cost: tuple[int, ...]
    """The same for what profiling measures."""
    varied: tuple[str, ...]
    """Axes of the suite within whose values rows are compared."""

    def marks(self, row: int) -> str:
        """Return the marks of one row, such as `a, b`."""
        return ", ".join(note.mark for note in self.footnotes if row in note.rows)

    def notes(self) -> tuple[str, ...]:
        """Return what stands below the table: each footnote, and within what rows are compared."""
        notes = [note.note for note in self.footnotes]
        if self.varied:
            axes = plain(" and ".join(self.varied))
            notes.append(f"Compared, and bold, within each {axes}: only rows alike in it.")
        if any(not note.ranked for note in self.footnotes):
            marks = ", ".join(note.mark for note in self.footnotes if not note.ranked)
            notes.append(f"In quality, rows are compared (bold) only where they agree in {marks}.")
        return tuple(notes)


def fairness(rows: Sequence[Configuration]) -> Fairness:
    """Return in what the rows of a table differ beside their attention.

    A setting that the suite varies on purpose (an axis of its matrix) has no footnote, since labels and
    columns tell it; rows are compared within each of its values, unless it is the only thing that varies.
    """
    settings = [dict(_settings(row.results[0])) for row in rows]
    names = [
        n for n in dict.fromkeys(n for s in settings for n in s) if _differ([s.get(n) for s in settings])
    ]
    axes = {name: axis for name in names if (axis := _axis_of(name, rows))}
    aspects = [
        _Aspect(name=_NAMES.get(n, n), values=[s.get(n) for s in settings], ranked=not _of_quality(n))
        for n in names
        if n not in axes and not n.startswith("model.")
    ]
    aspects += [
        _images(rows),
        _model(settings, [n for n in names if n.startswith("model.") and n not in axes]),
    ]
    aspects.append(_Aspect(name="seeds", values=[_list(row.seeds) for row in rows], ranked=True))
    unlike = [aspect.values for aspect in aspects if not aspect.ranked]
    varied = [name for name in axes if _of_quality(name)]
    quality = _numbered([*unlike, *([s.get(n) for s in settings] for n in varied)], len(rows))
    if varied and len(set(quality)) == len(rows):  # each row alone: the axis itself is what is compared
        varied, quality = [], _numbered(unlike, len(rows))
    profiled = [[s.get(n) for s in settings] for n in names if n.startswith("profile.")]
    sides = [str(main_resolution(row.results[0])) for row in rows]
    cost = _numbered([*profiled, sides], len(rows))
    found = [note for aspect in aspects if (note := _footnote(aspect, rows))]
    found += [note for quantity in (SIZE[0], MACS) if (note := _size(quantity, rows, cost))]
    return Fairness(
        footnotes=tuple(replace(note, mark=_mark(i)) for i, note in enumerate(found)),
        quality=quality,
        cost=cost,
        varied=tuple(dict.fromkeys(axes[n] for n in varied)),
    )


def differences(results: Sequence[Result]) -> list[Footnote]:
    """Return the footnotes of a table with one row per configuration of these results."""
    return list(fairness(configurations(results)).footnotes)


@dataclass(frozen=True, kw_only=True)
class _Aspect:
    """One thing that rows may differ in, as text; None where a row does not say."""

    name: str
    values: list[str | None]
    ranked: bool


def _settings(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the settings that can change a result, as (dotted name, text); where unwritten, the default."""
    for section in ("data", "train", "sample", "evaluate", "profile", "model"):
        settings = result.case.get(section)
        if not isinstance(settings, dict):
            continue
        if section == "train" and result.case.get("initial"):
            settings = {**settings, "init_from": result.case["initial"]}  # what is in it, wherever it lies
        if section == "model":
            settings = {key: value for key, value in settings.items() if key not in _NO_PART_OF_A_MODEL}
        if spec := _SPECS.get(section):
            fields = spec.model_fields.items()
            settings = {key: f.default for key, f in fields if not f.is_required()} | settings
        for name, text in _leaves(settings, section):
            if name not in _CHANGE_NO_RESULT:
                yield name, text


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 2 and 2.0 are one guidance scale
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = plain(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _of_quality(name: str) -> bool:
    """Whether quality does not compare between rows that differ in this setting."""
    return name.startswith(("data.", "train.", "sample.", "evaluate.")) and name not in _ONLY_ROUNDING


def _differ(values: Sequence[str | None]) -> bool:
    return len({value for value in values if value is not None}) > 1


def _axis_of(name: str, rows: Sequence[Configuration]) -> str | None:
    """Return the axis of the suite that varies a setting; axes are named by the end of what they vary."""
    axes = dict.fromkeys(axis for row in rows for axis in row.results[0].axes)
    return next((axis for axis in axes if f".{axis}." in f".{name}."), None)


def _images(rows: Sequence[Configuration]) -> _Aspect:
    """Return how many images stand behind each row's quality."""
    values = []
    for row in rows:
        counts = {m.n for r in row.results for m in r.measurements if is_quality(m.name) and m.n}
        values.append(" and ".join(f"{n:,}" for n in sorted(counts)) or None)
    return _Aspect(name="images scored", values=values, ranked=False)


def _model(settings: Sequence[dict[str, str]], names: Sequence[str]) -> _Aspect:
    """Return each row's model beside its attention, as far as the rows differ there."""
    values = [
        ", ".join(f"{n.removeprefix('model.')} {s[n]}" for n in names if n in s) or None for s in settings
    ]
    return _Aspect(name="model beside its attention:", values=values, ranked=True)


def _footnote(aspect: _Aspect, rows: Sequence[Configuration]) -> Footnote | None:
    """Return what an aspect's rows differ in; the rows that are not as most are, all where none is usual."""
    if not _differ(aspect.values):
        return None
    ranked = Counter(value for value in aspect.values if value is not None).most_common()
    usual = ranked[0][0] if ranked[0][1] > ranked[1][1] else None
    odd = [value for value, _ in ranked if value != usual]
    having = {value: [i for i, v in enumerate(aspect.values) if v == value] for value in odd}
    if len(odd) == 1:
        text = f"{aspect.name} {odd[0]}"
    else:
        text = f"{aspect.name} " + "; ".join(
            f"{value} ({_list([rows[i].label for i in places])})" for value, places in having.items()
        )
    if usual is not None:
        text += f", the others {usual}"
    places = tuple(sorted(i for found in having.values() for i in found))
    return Footnote(mark="", aspect=aspect.name, text=plain(text), rows=places, ranked=aspect.ranked)


def _size(quantity: Quantity, rows: Sequence[Configuration], groups: Sequence[int]) -> Footnote | None:
    """Return which rows are larger or smaller than the baseline among the rows of their group."""
    values = [_measured(quantity, row) for row in rows]
    odd: dict[int, float] = {}
    bases: dict[str, None] = {}
    for group in dict.fromkeys(groups):
        members = [i for i, g in enumerate(groups) if g == group and values[i]]
        if not members:
            continue
        first = baseline([rows[i].results[0] for i in members])
        base = next(i for i in members if rows[i].results[0] is first)
        shares = {i: (values[i] or 0) / (values[base] or 1) - 1 for i in members}
        unlike = {i: share for i, share in shares.items() if abs(share) > TOLERANCE}
        odd |= unlike
        if unlike:
            bases[rows[base].label] = None
    if not odd:
        return None
    low, high = (
        f"{100 * share:+.0f} %".replace("-", "−") for share in (min(odd.values()), max(odd.values()))
    )
    by = low if low == high else f"{low} to {high}"
    text = f"{quantity.title} not within {100 * TOLERANCE:.0f} % of those of {_list(list(bases))}: {by}"
    return Footnote(mark="", aspect=quantity.title, text=plain(text), rows=tuple(sorted(odd)), ranked=True)


def _measured(quantity: Quantity, row: Configuration) -> float | None:
    """Return a size of a row's model, of its first case that has it; None where none has a positive one."""
    for result in row.results:
        name = quantity.name if quantity is SIZE[0] else f"{quantity.name}@{main_resolution(result)}"
        found = result.measurement(name)
        if found and found.values and math.isfinite(found.value) and found.value > 0:
            return found.value
    return None


def _numbered(values: Sequence[Sequence[str | None]], rows: int) -> tuple[int, ...]:
    """Return the number of each row's group: rows of one group have all values in common."""
    keys = [tuple(column[i] for column in values) for i in range(rows)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def _list(items: Sequence[object]) -> str:
    shown = [str(item) for item in items[:_FEW]]
    return ", ".join(shown) + (f" and {len(items) - _FEW} more" if len(items) > _FEW else "")


def _mark(number: int) -> str:
    """Return a, b, ... z, aa, ab and so on."""
    letters = chr(ord("a") + number % 26)
    return letters if number < 26 else _mark(number // 26 - 1) + letters
