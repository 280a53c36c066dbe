"""Whether rows are alike: what they differ in beside their attention, as footnotes, and which compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnbench.report.aspects import (
    SETTINGS,
    Aspect,
    axis_of,
    concerns_quality,
    differ,
    images_of,
    machines_of,
    models_of,
    seeds_of,
    settings_of,
)
from attnbench.report.configurations import Configuration, configurations
from attnbench.report.latency import baseline
from attnbench.report.quantities import MACS, SIZE, Quantity, main_resolution
from attnbench.report.tables import plain
from attnbench.results import Result

TOLERANCE = 0.02
"""Parameters and MACs this close count as equal: what rounding widths to whole heads costs."""

_FEW = 4  # labels that a footnote lists
_LONGEST = 60  # characters of a value in it


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
            notes.append(f"Quality is compared within each {axes}: a best for each.")
        if any(not note.ranked for note in self.footnotes):
            marks = ", ".join(note.mark for note in self.footnotes if not note.ranked)
            notes.append(f"Quality is compared only between rows that agree in {marks}.")
        return tuple(notes)


def fairness(rows: Sequence[Configuration]) -> Fairness:
    """Return in what the rows of a table differ beside their attention.

    A setting that the suite varies on purpose (an axis of its matrix) has no footnote, since labels and
    columns tell it; rows are compared within each of its values, unless it is the only thing that varies.
    """
    settings = [dict(settings_of(row.results[0])) for row in rows]
    names = [n for n in dict.fromkeys(n for s in settings for n in s) if differ([s.get(n) for s in settings])]
    axes = {name: axis for name in names if (axis := axis_of(name, rows))}
    aspects = [
        Aspect(name=SETTINGS.get(n, n), values=[s.get(n) for s in settings], ranked=not concerns_quality(n))
        for n in names
        if n not in axes and not n.startswith("model.")
    ]
    models = models_of(settings, [n for n in names if n.startswith("model.") and n not in axes])
    machines = machines_of(rows)
    aspects += [images_of(rows), models, seeds_of(rows), machines]
    unlike = [aspect.values for aspect in aspects if not aspect.ranked]
    varied = [name for name in axes if concerns_quality(name)]
    quality = _numbered([*unlike, *([s.get(n) for s in settings] for n in varied)], len(rows))
    if varied and len(set(quality)) == len(rows):  # each row alone: the axis itself is what is compared
        varied, quality = [], _numbered(unlike, len(rows))
    profiled = [[s.get(n) for s in settings] for n in names if n.startswith("profile.")]
    sides = [str(main_resolution(row.results[0])) for row in rows]
    passes = _numbered([*profiled, sides], len(rows))
    found = [note for aspect in aspects if (note := _footnote(aspect, rows))]
    found += [note for quantity in (SIZE[0], MACS) if (note := _size(quantity, rows, passes))]
    return Fairness(
        footnotes=tuple(replace(note, mark=_mark(i)) for i, note in enumerate(found)),
        quality=quality,
        cost=_numbered([*profiled, sides, machines.values], len(rows)),
        varied=tuple(dict.fromkeys(axes[n] for n in varied)),
    )


def differences(results: Sequence[Result]) -> list[Footnote]:
    """Return the footnotes of a table with one row per configuration of these results."""
    return list(fairness(configurations(results)).footnotes)


def _footnote(aspect: Aspect, rows: Sequence[Configuration]) -> Footnote | None:
    """Return what an aspect's rows differ in; the rows that are not as most are, all where none is usual."""
    if not differ(aspect.values):
        return None
    ranked = Counter(value for value in aspect.values if value is not None).most_common()
    usual = ranked[0][0] if ranked[0][1] > ranked[1][1] else None
    odd = [value for value, _ in ranked if value != usual]
    having = {value: [i for i, v in enumerate(aspect.values) if v == value] for value in odd}
    named = [f"{_short(v)} ({_list([rows[i].label for i in places])})" for v, places in having.items()]
    text = f"{aspect.name} {_short(odd[0]) if len(odd) == 1 else '; '.join(named)}"
    if usual is not None:
        text += f", the others {_short(usual)}"
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
    percent = f"{100 * TOLERANCE:.0f} %"
    text = f"{quantity.title} differ from those of {_list(list(bases))} by more than {percent}: {by}"
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


def _short(value: str) -> str:
    """Return a value as a footnote shows it; of a long one, such as a folder, its end."""
    value = plain(value)
    return value if len(value) <= _LONGEST else "…" + value[1 - _LONGEST :]


def _list(items: Sequence[object]) -> str:
    shown = [str(item) for item in items[:_FEW]]
    return ", ".join(shown) + (f" and {len(items) - _FEW} more" if len(items) > _FEW else "")


def _mark(number: int) -> str:
    """Return a, b, ... z, aa, ab and so on."""
    letters = chr(ord("a") + number % 26)
    return letters if number < 26 else _mark(number // 26 - 1) + letters
