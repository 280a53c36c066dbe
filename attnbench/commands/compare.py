"""What `attnbench compare` does: read the runs, compare, print, judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import typer

from attnbench import console
from attnbench.errors import UserInputError
from attnbench.report.compare import (
    Equal,
    RunComparison,
    Wanted,
    compare_named,
    comparison_tables,
    gate_lines,
    notes,
    parse_gates,
)
from attnbench.report.markdown import escape, render_table


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command, as they were typed."""

    runs: Sequence[str]
    folder: Path
    cases: Sequence[str]
    against: str | None
    equal: str | None
    only: str
    fail_on: str | None
    alpha: float
    time_margin: str
    session_margin: str
    force: bool
    format: str


def compare_runs(options: Options) -> int:
    """Compare what the options name and print it; return the exit code."""
    form = _one_of(options.format, ("table", "md", "json"), "--format")
    if options.equal is not None:
        _one_of(options.equal, get_args(Equal), "--equal")
    wanted = Wanted(
        cases=tuple(options.cases),
        against=options.against,
        only=_names(options.only),
        gates=() if options.fail_on is None else tuple(parse_gates(options.fail_on)),
        alpha=_share(options.alpha),
        time_margin=_margin(options.time_margin, "--time-margin"),
        session_margin=_margin(options.session_margin, "--session-margin"),
        force=options.force,
    )
    found = compare_named(options.runs, options.folder, wanted, cast("Equal | None", options.equal))
    if form == "json":
        typer.echo(found.model_dump_json(indent=2))
    elif form == "md":
        typer.echo(_markdown(found))
    else:
        _print(found)
    if not found.rows:
        console.print_notice("error: nothing was compared; see the reasons above, or --case and --against")
    return found.exit_code


def _print(found: RunComparison) -> None:
    *tables, last = comparison_tables(found)
    for table in tables:
        console.print_table(table)
    console.print_table(replace(last, notes=tuple(notes(found))))
    for line in gate_lines(found):
        console.console().print(line, markup=False)


def _markdown(found: RunComparison) -> str:
    parts = ["# Comparison"]
    for table in comparison_tables(found):
        parts += [f"## {escape(table.title)}", render_table(table)]
    parts.append("\n".join(f"- {escape(note)}" for note in notes(found)))
    if found.gates:
        parts += ["## Gates", "\n".join(f"- {escape(line)}" for line in gate_lines(found))]
    return "\n\n".join(parts)


def _one_of(text: str, names: Sequence[str], option: str) -> str:
    if text not in names:
        raise UserInputError(f"{option} takes {', '.join(names[:-1])} or {names[-1]}, got {text!r}")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    if text and not names:
        raise UserInputError(f"--only takes names with commas, such as quality,latency, got {text!r}")
    return names


def _share(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise UserInputError(f"--alpha takes a share between 0 and 1, such as 0.05, got {alpha:g}")
    return alpha


def _margin(text: str, option: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?\s*%", text.strip()) or float(text.strip().rstrip("% ")) >= 100:
        raise UserInputError(f"{option} takes a percentage below 100, such as 6%, got {text!r}")
    return float(text.strip().rstrip("% ")) / 100
