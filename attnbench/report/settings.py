"""What the cases of a suite were set to: what differs between them, and what all of them share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.report.configurations import configurations
from attnbench.report.tables import MISSING, Column, Row, Table, plain, text_cell
from attnbench.results import Result

DIFFERENCES = "Settings that differ between cases"
_MOST_COLUMNS = 6  # of settings or cases: a wider table is read by nobody


@dataclass(frozen=True)
class _Head:
    """A configuration: its label and its first place among the results."""

    label: str
    series: int


def settings_tables(results: Sequence[Result]) -> tuple[Table | None, Table | None]:
    """Return the settings that differ between configurations, and those all of them share.

    Few settings have a column each; else few configurations have; else each has its settings as a list.
    """
    places = {id(result): place for place, result in enumerate(results)}
    rows_of = configurations(results)
    flat = [dict(_settings(row.results[0].case)) for row in rows_of]
    for row, settings in zip(rows_of, flat, strict=True):
        if "seed" in settings:
            settings["seed"] = ", ".join(map(str, row.seeds))
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    differing = [n for n in names if len({settings.get(n) for settings in flat}) > 1]
    heads = [_Head(row.label, min(places[id(result)] for result in row.results)) for row in rows_of]
    shared = [(n, flat[0][n]) for n in names if n not in differing]
    differences = None
    if differing:
        layout = _as_lists
        if len(differing) <= _MOST_COLUMNS:
            layout = _by_setting
        elif len(heads) <= _MOST_COLUMNS:
            layout = _by_case
        differences = layout(heads, flat, differing)
    rows = tuple(Row(cells=(text_cell(name), text_cell(value))) for name, value in shared)
    columns = (_words("Setting"), _words("Value"))
    common = Table(title="Settings shared by all cases", columns=columns, rows=rows) if rows else None
    return differences, common


def _by_setting(heads: Sequence[_Head], flat: Sequence[dict[str, str]], names: Sequence[str]) -> Table:
    rows = tuple(
        Row(
            cells=(text_cell(head.label), *(text_cell(found.get(n, MISSING)) for n in names)),
            series=head.series,
        )
        for head, found in zip(heads, flat, strict=True)
    )
    return Table(title=DIFFERENCES, columns=tuple(map(_words, ("Case", *names))), rows=rows)


def _by_case(heads: Sequence[_Head], flat: Sequence[dict[str, str]], names: Sequence[str]) -> Table:
    rows = tuple(
        Row(cells=(text_cell(name), *(text_cell(found.get(name, MISSING)) for found in flat)))
        for name in names
    )
    return Table(
        title=DIFFERENCES, columns=tuple(map(_words, ("Setting", *(head.label for head in heads)))), rows=rows
    )


def _as_lists(heads: Sequence[_Head], flat: Sequence[dict[str, str]], names: Sequence[str]) -> Table:
    """Return one list per case, without the beginning that all names share and without its own label."""
    prefix = _common_prefix(names)
    rows = []
    for head, found in zip(heads, flat, strict=True):
        told = [n for n in names if n in found and not (n.endswith(".label") and found[n] == head.label)]
        said = ", ".join(f"{n[len(prefix) :]} = {found[n]}" for n in told)
        rows.append(Row(cells=(text_cell(head.label), text_cell(said)), series=head.series))
    title = f"Settings below {prefix[:-1]}" if prefix else "Settings"
    return Table(title=DIFFERENCES, columns=(_words("Case"), _words(title)), rows=tuple(rows))


def _common_prefix(names: Sequence[str]) -> str:
    """Return the dotted beginning of all names, with its last dot; empty where there is none.

    >>> _common_prefix(["model.ffn.kind", "model.ffn.ratio"])
    'model.ffn.'
    """
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(f"{parts[0]}.")
    return "".join(shared)


def _words(title: str) -> Column:
    return Column(title=plain(title), numeric=False)


def _settings(case: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was set; the words that only describe a case stand elsewhere in a report."""
    for name, text in _flatten(case):
        if (
            text
            and name not in ("suite", "question", "label", "model.summary")
            and not name.startswith(("axes.", "code.", "files.", "teacher."))
        ):
            yield name, text


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings as (dotted name, text)."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, str):
        yield prefix, value
    else:
        yield prefix, json.dumps(value)
