"""Lines of a diagnosis against blocks or timesteps: one series a case, named in a panel of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.report.diagnosis_record import Diagnosis
from attnbench.report.drawing import colour, dash, drawing, marker, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAMBDA = "lambda"
_PANELS = (
    ("token_similarity", "token similarity (block)"),
    ("attention_similarity", "token similarity (attention)"),
    ("entropy", "entropy / ln N"),
    ("effective_rank", "effective rank"),
    ("row_variance", "row variance"),
)
_LINE_INCHES = 0.2  # of a name in the panel of names
_MOST_NAMES = 24  # in one column of that panel


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """One case's diagnosis, and the place among the results that decides its colour."""

    series: int
    label: str
    diagnosis: Diagnosis


def oversmoothing_figure(found: Sequence[Diagnosed]) -> str | None:
    """Return every measure against the block, or None where no case has any."""
    lines = {
        name: [(one, [(float(n), v) for n, v in one.diagnosis.over_layers(name)]) for one in found]
        for name, _ in _PANELS
    }
    return _panels(found, lines, "block", "oversmoothing", "Measures of oversmoothing against the block")


def timestep_figure(found: Sequence[Diagnosed]) -> str | None:
    """Return every measure against the timestep, mean over blocks; None with a single timestep."""
    if all(len(one.diagnosis.timesteps) < 2 for one in found):
        return None
    lines = {name: [(one, _over_timesteps(one.diagnosis, name)) for one in found] for name, _ in _PANELS}
    words = "Measures of oversmoothing against the timestep"
    return _panels(found, lines, "timestep", "oversmoothing-timesteps", words)


def lambda_figure(found: Sequence[Diagnosed]) -> str | None:
    """Return the mean lambda of every block of the cases that record one, else None."""
    chosen = with_lambda(found)
    if not chosen:
        return None
    with drawing():
        return svg(draw_lambda(chosen), "lambda", "Mean differential factor of every block")


def with_lambda(found: Sequence[Diagnosed]) -> list[Diagnosed]:
    """Return the cases that record a differential factor."""
    return [one for one in found if LAMBDA in one.diagnosis.factors]


def draw_lambda(chosen: Sequence[Diagnosed]) -> Figure:
    """Return the figure of mean lambdas; call it within `drawing()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, max(3.7, _LINE_INCHES * len(chosen) + 0.8)), layout="constrained")
    axes, names = figure.subplots(1, 2, width_ratios=(2, 1))
    for one in chosen:
        means = one.diagnosis.factors[LAMBDA].means
        for bank in range(max(map(len, means))):
            points = [(float(n), banks[bank]) for n, banks in enumerate(means) if bank < len(banks)]
            draw_line(axes, one.series, points, hollow=bank > 0)
    axes.set_xlabel("block")
    axes.set_ylabel("mean λ")
    _whole_ticks(axes)
    write_names(names, [(one.series, one.label) for one in chosen])
    return figure


def _over_timesteps(diagnosis: Diagnosis, name: str) -> list[tuple[float, float]]:
    points = []
    for timestep, row in sorted(zip(diagnosis.timesteps, diagnosis.measures.get(name, ()), strict=False)):
        kept = [value for value in row if value is not None]
        if kept and len(kept) == len(row):
            points.append((float(timestep), math.fsum(kept) / len(kept)))
    return points


def _panels(
    found: Sequence[Diagnosed],
    lines: dict[str, list[tuple[Diagnosed, list[tuple[float, float]]]]],
    across: str,
    name: str,
    description: str,
) -> str | None:
    """Draw a panel for each measure and one of names."""
    if not any(points for of_measure in lines.values() for _, points in of_measure):
        return None
    from matplotlib.figure import Figure

    with drawing():
        height = max(5.4, 2 * line_height(len(found)))
        figure = Figure(figsize=(9.6, height), layout="constrained")
        panels = figure.subplots(2, 3).flatten()
        for axes, (measure, title) in zip(panels, _PANELS, strict=False):
            for one, points in lines[measure]:
                draw_line(axes, one.series, points)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(across)
            axes.margins(0.06)
            if across == "block":
                _whole_ticks(axes)
        write_names(panels[-1], [(one.series, one.label) for one in found])
        return svg(figure, name, description)


def draw_line(
    axes: Axes, series: int, points: Sequence[tuple[float, float]], *, hollow: bool = False, marks: int = 0
) -> None:
    """Draw the line of a case, every point marked or about `marks` of them."""
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(
            x, y, color=colour(series), linestyle=dash(series), marker=marker(series), markersize=4,
            linewidth=1.5, fillstyle="none" if hollow else "full",
            markevery=-(-len(points) // marks) if marks else None,
        )  # fmt: skip


def write_names(axes: Axes, named: Sequence[tuple[int, str]]) -> None:
    """Write every case beside its line: matplotlib's own legend leaves out names that begin with `_`."""
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(-max(len(named), 8) + 0.5, 0.5)
    for place, (series, label) in enumerate(named):
        axes.plot(
            [0.0, 0.06, 0.12], [-place] * 3, color=colour(series), linestyle=dash(series),
            linewidth=1.5, marker=marker(series), markevery=[1], markersize=4,
        )  # fmt: skip
        axes.text(0.16, -place, label, va="center", fontsize=8, parse_math=False)


def line_height(names: int) -> float:
    """Return the inches that a panel of names needs."""
    return _LINE_INCHES * min(names, _MOST_NAMES) + 0.4


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
