"""A profile drawn: cost against resolution with its crossovers, and where a block spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.profiling.crossovers import Crossover
from attnbench.profiling.parts import BlockParts, BlockTimes
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import LATENCY, Quantity, by_model, measured_as, value_of, why_left_out
from attnbench.report.drawing import (
    INK,
    PALETTE,
    colour,
    dash,
    distinct,
    drawing,
    legend,
    marker,
    plain_ticks,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MACS = "macs_full"
_AXIS_TITLES = {
    LATENCY: "time [ms]",
    "live_memory_mib": "live memory [MiB]",
    "extra_memory_mib": "extra memory [MiB]",
    "planned_memory_mib": "planned memory [MiB]",
    MACS: "multiply-adds [G]",
}
_RING: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.4}
_LINE_INCHES = 0.19  # a line of a legend
_LEAST_SHARE = 0.07  # of a bar that holds its percentage
Segment = tuple[float, str, str | None]  # length, fill, stripes
_PARTS: tuple[tuple[str, str, Callable[[BlockParts], int]], ...] = (
    ("attention: projections", PALETTE[5], lambda p: p.projections),
    ("attention: core", PALETTE[1], lambda p: p.core),
    ("feed-forward", PALETTE[2], lambda p: p.feed_forward),
    ("modulation", PALETTE[3], lambda p: p.modulation),
)
_TIMES: tuple[tuple[str, str, str, Callable[[BlockTimes], float]], ...] = (
    ("attention, whole", PALETTE[1], PALETTE[5], lambda t: t.attention_ms),
    ("the rest, with norms", PALETTE[2], PALETTE[3], lambda t: t.rest_ms),
)


def cost_figure(rows: Sequence[ProfileRow], crossovers: Sequence[Crossover] = ()) -> str | None:
    """Return time, memory and multiply-adds against resolution as one SVG, of rows of one setting.

    Rings mark from which side a model takes less than its baseline, bars through them the 95 % interval.
    Rows that failed are absent, disturbed ones are hollow and joined to nothing. None where nothing was
    measured at two resolutions.
    """
    models = by_model(rows)
    panels = panels_of(rows)
    if not panels:
        return None
    with drawing():
        figure = draw_costs(models, panels, crossovers)
        return svg(figure, "cost", "Time, memory and multiply-adds of every model against resolution")


def block_figure(parts: Sequence[BlockParts], times: Sequence[BlockTimes] = ()) -> str | None:
    """Return where each model's middle block spends as one SVG, at one resolution; None of no model.

    To the left multiply-adds by closed form, to the right the measured times, where scopes `attention` and
    `block` were measured.
    """
    if not parts:
        return None
    with drawing():
        side = parts[0].resolution
        return svg(draw_blocks(parts, times), f"block-{side}", f"Where a block spends at {side} px")


def panels_of(rows: Sequence[ProfileRow]) -> list[str]:
    """Return the columns that `draw_costs` can draw of rows of one setting: told at two resolutions."""
    return [name for name in _columns(by_model(rows)) if _sides(rows, name) > 1]


def draw_costs(
    models: dict[str, list[ProfileRow]], panels: Sequence[str], crossovers: Sequence[Crossover]
) -> Figure:
    """Return the figure of `cost_figure`; call it within `drawing()`."""
    from matplotlib.figure import Figure

    height = max(3.6, _LINE_INCHES * (len(models) + 3))
    figure = Figure(figsize=(3.4 * len(panels) + 2.6, height), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_axisbelow(True)
        axes.set(xscale="log", yscale="log", xlabel="side [px]", title=_AXIS_TITLES[name])
        for i, (model, rows) in enumerate(models.items()):
            line = _draw_model(axes, i, rows, name)
            met = [c for c in crossovers if c.model == model and c.measured_as == name]
            _draw_crossings(axes, i, line, met)
        _side_ticks(axes, sorted({row.resolution for rows in models.values() for row in rows}))
        plain_ticks(axes.yaxis)
    _legend(figure, list(models), crossed=any(c.resolution is not None for c in crossovers))
    return figure


def _columns(models: dict[str, list[ProfileRow]]) -> list[str]:
    """Return what has a panel: of each quantity the column that most models have."""
    quantities: tuple[Quantity, ...] = ("time", "memory")
    names = []
    for quantity in quantities:
        found = [measured_as([rows], quantity) for rows in models.values()]
        named = [name for name in found if name]
        names += [max(dict.fromkeys(named), key=named.count)] if named else []
    return [*names, MACS]


def _sides(rows: Sequence[ProfileRow], name: str) -> int:
    return len({row.resolution for row in rows if _shown(row, name) is not None})


def _shown(row: ProfileRow, name: str) -> float | None:
    """Return what is drawn of a row, disturbed or not; multiply-adds in G."""
    value = value_of(row, name)
    if name == MACS:
        return value / 1e9 if value else None
    return value if row.status == "ok" and value is not None and value > 0 else None


def _draw_model(axes: Axes, i: int, rows: Sequence[ProfileRow], name: str) -> list[tuple[int, float]]:
    """Draw one series and return the points that its line joins."""
    points = [(row, value) for row in rows if (value := _shown(row, name)) is not None]
    good = [(row, value) for row, value in points if name == MACS or not why_left_out(row, name)]
    style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "markersize": 5}
    axes.plot(
        [row.resolution for row, _ in good], [value for _, value in good],
        linestyle=dash(i), linewidth=1.5, **style,
    )  # fmt: skip
    kept = [id(row) for row, _ in good]
    for row, value in points:
        if id(row) not in kept:
            axes.plot([row.resolution], [value], markerfacecolor="none", linestyle="none", **style)
        elif name == LATENCY and row.latency_interval_ms is not None:
            axes.plot([row.resolution] * 2, row.latency_interval_ms, color=colour(i), linewidth=3, alpha=0.35)
    return [(row.resolution, value) for row, value in good]


def _draw_crossings(
    axes: Axes, i: int, line: Sequence[tuple[int, float]], crossings: Sequence[Crossover]
) -> None:
    """Mark crossovers on a model's line."""
    import numpy as np

    for crossing in crossings:
        side, ends = crossing.resolution, crossing.measured_range
        if side is None or ends is None:
            continue
        x, y = np.log(line).T
        height = float(np.exp(np.interp(np.log(side), x, y)))
        low, high = crossing.resolution_interval or (side, side)
        axes.plot([low or ends[0], high or ends[1]], [height] * 2, color=colour(i), linewidth=1.2)
        axes.plot([side], [height], color=colour(i), linestyle="none", **_RING)


def _side_ticks(axes: Axes, sides: Sequence[int]) -> None:
    """Write every measured side, but for those that lie too near to one that is written."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    written: list[int] = []
    for side in sides:
        if not written or side / written[-1] >= (sides[-1] / sides[0]) ** (1 / 7):
            written.append(side)
    axes.xaxis.set_major_locator(FixedLocator(written))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{side}" for side in written]))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, models: Sequence[str], *, crossed: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(i), linestyle=dash(i), marker=marker(i), markersize=5, linewidth=1.5)
        for i in range(len(models))
    ]
    names = distinct(models)
    if crossed:
        handles.append(Line2D([], [], color=INK, linewidth=1.2, **_RING))
        names.append("less than the baseline from here")
    legend(figure, handles, names, loc="outside right upper", fontsize=8.5, handlelength=3.6)


def draw_blocks(parts: Sequence[BlockParts], times: Sequence[BlockTimes]) -> Figure:
    """Return the figure of `block_figure`; call it within `drawing()`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = 2 if times else 1
    figure = Figure(figsize=(3.8 * panels + 2.8, 0.32 * len(parts) + 1.9), layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
    names = [found.model for found in parts]
    bars = [[(get(found) / 1e9, fill, None) for _, fill, get in _PARTS] for found in parts]
    _draw_bars(grid[0], bars, "multiply-adds of a block [G]")
    handles = [Patch(facecolor=fill, label=label) for label, fill, _ in _PARTS]
    if times:
        by_name = {found.model: found for found in times}
        timed: list[list[tuple[float, str, str | None]]] = [
            [(get(by_name[name]), fill, stripes) for _, fill, stripes, get in _TIMES]
            if name in by_name
            else []
            for name in names
        ]
        _draw_bars(grid[1], timed, "time of a block [ms]")
        handles += [
            Patch(facecolor=fill, edgecolor=stripes, hatch="///", linewidth=0, label=label)
            for label, fill, stripes, _ in _TIMES
        ]
    grid[0].set_yticks(range(len(names)), distinct(names))
    grid[0].invert_yaxis()
    figure.suptitle(f"Where the middle block spends at {parts[0].resolution} px", fontsize=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False)
    return figure


def _draw_bars(axes: Axes, bars: Sequence[Sequence[Segment]], title: str) -> None:
    """Draw one stacked bar for each list of (length, fill, stripes); shares are of the bar's own length."""
    axes.set_axisbelow(True)
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    axes.set_xlabel(title)
    longest = max((sum(length for length, *_ in bar) for bar in bars), default=0.0)
    for y, bar in enumerate(bars):
        total, left = sum(length for length, *_ in bar), 0.0
        for length, fill, stripes in bar:
            hatch: dict[str, Any] = {"hatch": "///", "edgecolor": stripes} if stripes else {}
            axes.barh(y, length, 0.72, left=left, color=fill, linewidth=0, **hatch)
            if length > _LEAST_SHARE * longest:
                axes.text(
                    left + length / 2, y, f"{length / total:.0%}", ha="center", va="center", fontsize=8,
                    bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.2},
                )  # fmt: skip
            left += length
