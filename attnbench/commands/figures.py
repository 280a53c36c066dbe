"""What `attnbench figures` does: read runs, choose cases, draw what they hold, say what is missing."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from attnbench.commands.figure_inside import inside_figures
from attnbench.commands.figure_samples import FigureCase, SampleChoice, sample_figure
from attnbench.console import print_notice
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.report.paper_figures import cost_resolution, quality_cost
from attnbench.report.paper_figures.catalogue import FIGURES, PaperFigure, chosen_figures
from attnbench.report.paper_figures.output import Drawn, Format, write_figure, write_latex
from attnbench.report.pareto import PARETO_COSTS, draw_front, labels_caption, pareto_front, pareto_points
from attnbench.report.pareto import caption as front_caption
from attnbench.report.pareto_costs import COSTS
from attnbench.report.quantities import Quantity, quality_quantities
from attnbench.results import Result
from attnbench.stages.interrupts import keeping
from attnbench.storage.names import PAPER_FIGURES
from attnbench.storage.run_folders import Run, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = tuple[str, "Callable[[], Figure]", str]
"""A figure's name, what draws it, its caption."""


@dataclass(frozen=True, kw_only=True)
class FiguresRequest:
    """What the user asked `attnbench figures` for, as it was typed."""

    named: tuple[str, ...]
    figures: str | None = None
    """None: all that can be drawn."""
    to: Path | None = None
    file_format: str | None = None
    cases: tuple[str, ...] = ()
    classes: str | None = None
    samples: str | None = None
    cost: str = "macs"
    quality: str | None = None
    extractor: str | None = None
    weights: Path | None = None


def figures(request: FiguresRequest, *, runs: Path, device: str, quiet: bool) -> None:
    """Draw the figures into a folder and print where they lie.

    Raises UserInputError for what is unknown, a metric or class after the others are drawn; likewise for a
    figure that was named and cannot be drawn, or where there is none at all.
    """
    file_format = _file_format(request.file_format)
    if request.cost not in COSTS:
        raise UnknownNameError("cost", request.cost, COSTS)
    wanted = chosen_figures(words(request.figures) if request.figures else list(FIGURES))
    if not wanted:
        raise UserInputError(f"--figure names none; choose of {', '.join(FIGURES)}")
    read = [read_run(name, runs) for name in dict.fromkeys(request.named)]
    cases = chosen_cases(read, request.cases)
    if request.quality is not None:  # before pictures are drawn that a slip of the pen would cost
        _check_quality([case.result for case in cases], request.quality)
    folder = request.to or read[0].folder / PAPER_FIGURES
    drawn: list[Drawn] = []
    missing: list[str] = []
    typed, mistyped = (request.extractor, *words(request.classes or "")), False
    with keeping(lambda: f"{len(drawn)} figures are drawn; run the same command again for the others"):
        for figure in wanted:
            chosen = file_format or ("png" if figure.kind == "samples" else "svg")
            try:
                for name, draw, caption in _draws(figure, cases, request, folder, device=device, quiet=quiet):
                    drawn.append(write_figure(name, draw, caption, folder, chosen))
                    typer.echo(f"figure {name}: {drawn[-1].path}")
            except UserInputError as error:
                missing.append(str(error))
                mistyped = mistyped or (isinstance(error, UnknownNameError) and error.got in typed)
    for_latex = [figure for figure in drawn if figure.path.suffix != ".svg"]
    if for_latex:
        typer.echo(f"for LaTeX: {write_latex(for_latex, folder)}")
    if missing and (request.figures or mistyped or not drawn):
        raise UserInputError("\n".join(dict.fromkeys(missing)))
    for reason in missing:
        print_notice(f"not drawn: {reason}")


def chosen_cases(read: Sequence[Run], patterns: Sequence[str]) -> list[FigureCase]:
    """Return the cases of runs that a pattern names by label or id, all without one.

    Where a label stands in several runs, the name of its run is added. Raises UnknownNameError.
    """
    every = [FigureCase(folder=run.folder, result=result) for run in read for result in run.results]
    labels = [case.result.label for case in every]
    for pattern in patterns:
        if not any(_matches(case.result, pattern) for case in every):
            raise UnknownNameError("case (a label, an id, or a pattern of labels)", pattern, set(labels))
    chosen = [case for case in every if not patterns or any(_matches(case.result, one) for one in patterns)]
    if len(read) == 1:
        return chosen
    return [
        case if labels.count(case.result.label) == 1 else replace(case, result=_with_run(case, read))
        for case in chosen
    ]


def _matches(result: Result, pattern: str) -> bool:
    return pattern in (result.label, result.case_id) or fnmatch.fnmatchcase(result.label, pattern)


def _with_run(case: FigureCase, read: Sequence[Run]) -> Result:
    run = next(run for run in read if run.folder == case.folder)
    suites = [each.suite for each in read]
    name = run.suite if suites.count(run.suite) == 1 else str(run.folder)
    return case.result.model_copy(update={"label": f"{case.result.label} · {name}"})


def _draws(
    figure: PaperFigure,
    cases: Sequence[FigureCase],
    request: FiguresRequest,
    folder: Path,
    *,
    device: str,
    quiet: bool,
) -> list[Draw]:
    """Return what draws one of the paper's figures; raises UserInputError saying what is missing."""
    results = [case.result for case in cases]
    match figure.kind:
        case "resolution":
            profiled = cost_resolution.profiled(results)
            draw: Callable[[], Figure] = partial(cost_resolution.draw_cost_resolution, profiled)
            return [(figure.name, draw, cost_resolution.CAPTION)]
        case "cost":
            cost, quality = COSTS[request.cost], _quality(results, request.quality, figure.name)
            spots = quality_cost.quality_cost_spots(results, cost, quality)
            draw = partial(quality_cost.draw_quality_cost, spots, cost, quality)
            return [(figure.name, draw, quality_cost.caption(spots, cost, quality))]
        case "pareto":
            quality = _quality(results, request.quality, figure.name)
            return _fronts(results, quality)
        case "samples":
            choice = SampleChoice(classes=request.classes, samples=request.samples)
            draw, caption = sample_figure(figure, cases, choice, say=print_notice)
            return [(figure.name, draw, caption)]
        case "inside":
            return inside_figures(figure.name, cases, print_notice)
        case "separation":
            from attnbench.commands.figure_separation import SeparationRequest, separation_figure

            asked = SeparationRequest(
                classes=request.classes, extractor=request.extractor, weights=request.weights
            )
            draw, caption = separation_figure(
                cases, asked, folder, device=device, quiet=quiet, say=print_notice
            )
            return [(figure.name, draw, caption)]


def _fronts(results: Sequence[Result], quality: Quantity) -> list[Draw]:
    """Return what draws quality against each cost; raises UserInputError where there is none."""
    assert quality.better != "none"  # `_quality` takes no other
    draws: list[Draw] = []
    for cost in (COSTS[name] for name in PARETO_COSTS):
        points = pareto_points(results, cost, quality)
        if len(points) > 1:
            front = pareto_front(points, quality.better)
            draw = partial(draw_front, front, cost, quality)
            told = front_caption(front, cost, quality) + labels_caption(front)
            draws.append((f"pareto-{cost.name}", draw, told))
    if not draws:
        raise UserInputError(
            f"figure pareto compares cases, and fewer than two have both {quality.name} and a cost; give "
            "runs that evaluated and profiled two or more"
        )
    return draws


def _quality(results: Sequence[Result], wanted: str | None, figure: str) -> Quantity:
    """Return the metric of that name, or the first; raises UserInputError where there is none."""
    known = _qualities(results)
    if not known:
        raise UserInputError(
            f"figure {figure} needs a quality metric, and no case has one; run the suite with evaluation"
        )
    if wanted is None:
        return next(iter(known.values()))
    _check_quality(results, wanted)
    return known[wanted]


def _qualities(results: Sequence[Result]) -> dict[str, Quantity]:
    return {q.name: q for q in quality_quantities(results) if q.better != "none"}


def _check_quality(results: Sequence[Result], wanted: str) -> None:
    """Raise UnknownNameError for a metric that none of these has, though they have others."""
    known = _qualities(results)
    if known and wanted not in known:
        raise UnknownNameError("quality metric", wanted, known)


def _file_format(name: str | None) -> Format | None:
    if name is not None and name not in get_args(Format):
        raise UnknownNameError("format", name, get_args(Format))
    return name  # type: ignore[return-value]


def words(text: str) -> list[str]:
    """Split a list of names at its commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
