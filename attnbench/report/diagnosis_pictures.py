"""Pictures of a diagnosis: most used projectors by class and block, router balance, maps of one query."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.report.diagnosis_lines import Diagnosed
from attnbench.report.diagnosis_record import Choices
from attnbench.report.drawing import INK, colour, drawing, shortened, svg
from attnbench.report.router_curves import evenness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QueryRow = tuple[Diagnosed, int, list[float]]
"""A case, an output token, and its weights over the input tokens in the middle block."""
PROJECTORS = {"projector_q": "queries", "projector_k": "keys"}
MOST_CLASSES = 20  # rows of a picture of projectors
COLUMNS = 5  # pictures of one query in a row
_WITH_NUMBERS = 16  # blocks: more leave no room for a number in each
_TITLE_LETTERS = 22  # in a line


def projector_figure(one: Diagnosed) -> str | None:
    """Return the most used projector of every class in every block, or None where none is recorded."""
    if not projectors_of(one):
        return None
    with drawing():
        return svg(draw_projectors(one), f"projectors-{one.series}", f"Most used projectors of {one.label}")


def projectors_of(one: Diagnosed) -> dict[str, Choices]:
    """Return the recorded choices of projectors that are known by class, under what they project."""
    return {
        title: one.diagnosis.choices[name]
        for name, title in PROJECTORS.items()
        if name in one.diagnosis.choices and one.diagnosis.choices[name].by_class
    }


def draw_projectors(one: Diagnosed) -> Figure:
    """Return the figure of a case's most used projectors; call it within `drawing()`."""
    from matplotlib.figure import Figure

    recorded, classes = projectors_of(one), one.diagnosis.class_names[:MOST_CLASSES]
    blocks = len(one.diagnosis.paths)
    size = (max(5.0, len(recorded) * (0.32 * blocks + 1.3)), 0.26 * len(classes) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(recorded), squeeze=False, sharey=True)[0]
    for axes, (title, choices) in zip(panels, recorded.items(), strict=True):
        _projectors(axes, choices, len(classes), blocks)
        axes.set_title(f"projectors of {title}", fontsize=10)
    panels[0].set_yticks(range(len(classes)), [shortened(name) for name in classes], fontsize=8)
    return figure


def balance_figure(found: Sequence[Diagnosed]) -> str | None:
    """Return how evenly the options of every router are chosen in every block, or None without routers."""
    rows = [
        (f"{one.label}: {name.replace('_', ' ')}", [evenness(s) if s else math.nan for s in choices.shares])
        for one in found
        for name, choices in one.diagnosis.choices.items()
        if choices.options > 1
    ]
    if not rows:
        return None
    from matplotlib.figure import Figure

    blocks = max(len(values) for _, values in rows)
    with drawing():
        figure = Figure(figsize=(max(6.4, 0.42 * blocks + 3.6), 0.28 * len(rows) + 1.4), layout="constrained")
        axes = figure.subplots()
        padded = [[*values, *[math.nan] * (blocks - len(values))] for _, values in rows]
        image = axes.imshow(padded, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="evenness of the choice")
        if blocks <= _WITH_NUMBERS:
            for row, (_, values) in enumerate(rows):
                for block, value in enumerate(values):
                    if math.isfinite(value):
                        ink = INK if value > 0.5 else "white"
                        axes.text(block, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        _block_ticks(axes, blocks)
        return svg(figure, "router-balance", "How evenly the options of every router are chosen")


def query_figure(found: Sequence[Diagnosed]) -> str | None:
    """Return one output token's weights in the middle block of every case that has them, else None."""
    shown = query_rows(found)
    if not shown:
        return None
    with drawing():
        words = "Implied attention of one output token over all input tokens"
        return svg(draw_query_maps(shown), "query-maps", words)


def query_rows(found: Sequence[Diagnosed]) -> list[QueryRow]:
    """Return the cases that recorded weights of an output token, with that token and its weights."""
    shown = []
    for one in found:
        maps = one.diagnosis.query_maps
        weights = maps.weights[len(maps.weights) // 2] if maps and maps.weights else []
        if maps and len(weights) == math.prod(one.diagnosis.grid):
            shown.append((one, maps.query, weights))
    return shown


def draw_query_maps(shown: Sequence[QueryRow]) -> Figure:
    """Return the figure of an output token's weights; call it within `drawing()`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.0, 1.9 * columns), 2.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, (one, query, weights) in zip(panels, shown, strict=False):
        height, width = one.diagnosis.grid
        image = [weights[row * width : (row + 1) * width] for row in range(height)]
        axes.imshow(image, cmap="viridis", interpolation="nearest")
        place = (query % width - 0.5, query // width - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="#d62728", linewidth=1.6))
        label = "\n".join(textwrap.wrap(one.label, _TITLE_LETTERS))
        axes.set_title(label, fontsize=8, color=colour(one.series), parse_math=False)
    return figure


def _projectors(axes: Axes, choices: Choices, classes: int, blocks: int) -> None:
    """Colour a cell by its most used projector, towards white the more evenly all are used."""
    from matplotlib.colors import to_rgb

    image = []
    for row in range(classes):
        cells = []
        for block in range(blocks):
            shares = choices.by_class[row][block]
            best = max(range(len(shares)), key=shares.__getitem__) if shares else 0
            even = evenness(shares) if shares else 1.0
            cells.append(tuple(even + (1 - even) * part for part in to_rgb(colour(best))))
            if shares and blocks <= _WITH_NUMBERS:
                axes.text(block, row, str(best), ha="center", va="center", fontsize=7)
        image.append(cells)
    axes.imshow(image, aspect="auto", interpolation="nearest")
    _block_ticks(axes, blocks)


def _block_ticks(axes: Axes, blocks: int) -> None:
    step = max(1, -(-blocks // _WITH_NUMBERS))
    axes.set_xticks(range(0, blocks, step), [str(block) for block in range(0, blocks, step)])
    axes.set_xlabel("block")
    axes.grid(visible=False)
