"""Figures 5, 6 and 7 for `attnbench figures`: what the stage `diagnose` saw inside the trained models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from attnbench.commands.figure_samples import FigureCase
from attnbench.errors import UserInputError
from attnbench.report.diagnosis import LAMBDA_CAPTION, diagnosed, projectors_caption, query_caption
from attnbench.report.diagnosis_lines import Diagnosed, draw_lambda, with_lambda
from attnbench.report.diagnosis_pictures import (
    draw_projectors,
    draw_query_maps,
    projectors_of,
    query_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = tuple[str, "Callable[[], Figure]", str]


def inside_figures(name: str, cases: Sequence[FigureCase], say: Callable[[str], None]) -> list[Draw]:
    """Return name, drawing and caption of each picture of figure 5, 6 or 7.

    Raises UserInputError where no case has what it shows, with what to run; says what cannot be read.
    """
    found: list[Diagnosed] = []
    for number, case in enumerate(cases):
        read, problems = diagnosed([case.result], case.folder)
        found += [Diagnosed(series=number, label=one.label, diagnosis=one.diagnosis) for one in read]
        for problem in problems:
            say(problem)
    if not found:
        raise UserInputError(
            f"figure {name} shows what happens inside a model, and no case was looked into; run the suite "
            "again with -o diagnose=true: what is finished is not computed again"
        )
    match name:
        case "5":
            routed = [one for one in found if projectors_of(one)]
            names = [name] if len(routed) == 1 else [f"{name}-{n}" for n in range(1, len(routed) + 1)]
            draws: list[Draw] = [
                (called, partial(draw_projectors, one), projectors_caption(one))
                for called, one in zip(names, routed, strict=True)
            ]
            lacking = "chooses between projectors (dydila does)"
        case "6":
            rows = query_rows(found)
            draws = [(name, partial(draw_query_maps, rows), query_caption(found))] if rows else []
            lacking = "has a map over its whole grid"
        case _:
            chosen = with_lambda(found)
            draws = [(name, partial(draw_lambda, chosen), LAMBDA_CAPTION)] if chosen else []
            lacking = "has differential factors (dydila and differential do)"
    if not draws:
        raise UserInputError(f"figure {name}: no case that was looked into {lacking}")
    return draws
