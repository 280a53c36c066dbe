"""Rows of a table of the paper that met under the same conditions: what may be compared for a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnbench.models.recipes import load_recipes
from attnbench.report.configurations import Configuration, seed_of
from attnbench.report.paper.conditions import MEANT_TO_DIFFER, scored_settings
from attnbench.report.paper.filling import Line, Taken, by_line, most_alike, scale_text
from attnbench.report.paper.published import PaperTable
from attnbench.report.quantities import is_quality, is_separability
from attnbench.results import Result
from attnbench.specs import content_hash


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The rows of one size at one guidance scale, trained, sampled and scored alike."""

    on: str
    """Runs, models, data and feature network; settings, where the same runs hold several."""
    size: str
    scale: str
    conditions: Mapping[str, Any]
    """Settings that all rows share, by dotted key."""
    sides: Mapping[int, Configuration]
    """By row of the table; rows that several settings compete for are not among them."""
    unclear: Mapping[int, str]
    """Those rows, and which cases compete."""
    twice: Mapping[int, str]
    """Rows a seed of which was measured twice with different quality, and by which cases."""


def contests(table: PaperTable, runs: Mapping[str, Sequence[Result]]) -> dict[str, list[Contest]]:
    """Return every contest of a table's rows by what it is on; there it differs by guidance alone."""
    recipes = load_recipes()
    found: dict[tuple[Line, str, str, str], dict[int, list[Taken]]] = {}
    for run, results in runs.items():
        for line, taken, rows in by_line(table, run, results, recipes):
            case = taken.result.case
            scale = scale_text(float(case.get("sample", {}).get("guidance_scale", 1.0)))
            row = rows[-1]  # Table 3 has DiT-S twice
            key = (line, table.rows[row].size, content_hash(_conditions(case)), scale)
            found.setdefault(key, {}).setdefault(row, []).append(taken)
    alike: dict[tuple[Line, str, str], list[Contest]] = {}
    for (line, size, conditions, scale), by_row in found.items():
        if line.recipe:  # rows told by attention alone
            by_row = {row: most_alike(taken, table.rows[row], recipes) for row, taken in by_row.items()}
        alike.setdefault((line, size, conditions), []).append(_contest(line, size, scale, by_row))
    return _told_apart(list(alike.values()))


def _conditions(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that rows share: all that quality depends on but model, code, guidance and seed."""
    return {k: v for k, v in scored_settings(case).items() if not k.startswith(MEANT_TO_DIFFER)}


def _contest(line: Line, size: str, scale: str, rows: Mapping[int, Sequence[Taken]]) -> Contest:
    sides, unclear, twice = {}, {}, {}
    for row, taken in sorted(rows.items()):
        settings = {content_hash(scored_settings(one.result.case)) for one in taken}
        if len(settings) > 1:
            unclear[row] = f"{', '.join(dict.fromkeys(one.label for one in taken))} compete for one row"
            continue
        found = [one for one in taken if one.result.status == "ok"]
        failed = [one for one in taken if one.result.status != "ok"]
        by_seed = {seed_of(one.result): one.result for one in reversed([*found, *failed])}  # the first counts
        if clash := _clash(found):
            twice[row] = clash
        label = _label(taken[0].result)
        sides[row] = Configuration(label=label, results=tuple(by_seed[seed] for seed in sorted(by_seed)))
    everything = [one for taken in rows.values() for one in taken]
    runs = ", ".join(dict.fromkeys(one.run for one in everything))
    return Contest(
        on=f"{runs}: {line.what}" + ("" if line.recipe else f", size {size}"),
        size=size,
        scale=scale,
        conditions=_conditions(everything[0].result.case),
        sides=sides,
        unclear=unclear,
        twice=twice,
    )


def _clash(found: Sequence[Taken]) -> str:
    """Say which two runs have another quality for one seed; nothing where all agree."""
    first: dict[tuple[int, str], tuple[Taken, str]] = {}
    for one in found:
        for measured in one.result.measurements:
            if is_quality(measured.name) or is_separability(measured.name):
                values = str(measured.values)  # as text, so that NaN equals NaN
                other, known = first.setdefault((seed_of(one.result), measured.name), (one, values))
                if known != values:
                    return f"{other.label} and {one.label} differ in {measured.name}; leave one run out"
    return ""


def _told_apart(groups: Sequence[list[Contest]]) -> dict[str, list[Contest]]:
    """Name each group by the runs it is on, and by the settings that tell it from another of these runs."""
    firsts = [group[0] for group in groups]
    found: dict[str, list[Contest]] = {}
    for group in groups:
        own = group[0]
        peers = [other.conditions for other in firsts if other.on == own.on]
        keys = [key for key, value in own.conditions.items() if any(p.get(key) != value for p in peers)]
        on = own.on + "".join(f", {key} {own.conditions[key]}" for key in keys)
        found.setdefault(on, []).extend(replace(contest, on=on) for contest in group)
    return found


def _label(result: Result) -> str:
    """Return what a case is called, without seed and guidance."""
    parts = result.label.split(" · ")
    kept = [part for part in parts if not part.startswith(("seed=", "guidance_scale="))]
    return " · ".join(kept) or result.label
