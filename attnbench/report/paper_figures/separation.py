"""Figure 11: t-SNE of the features of samples, with how well their classes separate in feature space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnbench.report.drawing import FAINT, colour, distinct, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MEASUREMENT = "class_separability"
"""How the number beside a panel is called: share of samples whose nearest others are of their class."""
_MOST_COLUMNS = 6
_PANEL_INCHES = 2.3


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One model's points [n, 2] with their labels [n], and what was found in the feature space."""

    title: str
    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    accuracy: float
    """Share of samples whose class is that of most of their nearest others."""
    chance: float
    silhouette: float
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of classes, the same for every model."""

    letter: str
    words: str
    """How they were chosen, such as `random classes`."""
    classes: Sequence[int]
    names: Sequence[str]
    clouds: Sequence[Cloud]


def draw_separation(choices: Sequence[Choice], heading: str) -> Figure:
    """Return one block per choice of classes, one panel per model in it; call it within `drawing()`."""
    from matplotlib.figure import Figure

    columns = min(_MOST_COLUMNS, max(len(choice.clouds) for choice in choices))
    lines = [-(-len(choice.clouds) // columns) for choice in choices]
    height = sum(lines) * (_PANEL_INCHES + 0.75) + 0.35 * len(choices) + 0.6
    figure = Figure(figsize=(_PANEL_INCHES * columns + 2.2, height), layout="constrained")
    figure.suptitle(heading, fontsize=9)
    blocks = figure.subfigures(len(choices), 1, height_ratios=lines, squeeze=False)[:, 0]
    for block, choice in zip(blocks, choices, strict=True):
        _draw_choice(block, choice, columns)
    return figure


def _draw_choice(block: SubFigure, choice: Choice, columns: int) -> None:
    block.suptitle(f"({choice.letter}) {choice.words}", x=0.01, ha="left", fontsize=10)
    lines = -(-len(choice.clouds) // columns)
    grid = list(block.subplots(lines, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    titles = distinct([cloud.title for cloud in choice.clouds], 26)
    for axes, cloud, title in zip(grid, choice.clouds, titles, strict=False):
        _draw_cloud(axes, cloud, choice.classes, title)
    names = distinct(choice.names, 24)
    legend = block.legend(
        grid[0].collections, [str(i) for i in range(len(names))], loc="outside right center", frameon=False,
        fontsize=8,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # here, since matplotlib leaves out names that begin with _


def _draw_cloud(axes: Axes, cloud: Cloud, classes: Sequence[int], title: str) -> None:
    axes.set_axis_on()
    axes.grid(visible=False)
    for i, label in enumerate(classes):
        x, y = cloud.points[cloud.labels == label].T
        axes.scatter(x, y, s=12, marker=marker(i), color=colour(i), alpha=0.8, linewidths=0)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(
        f"separability {cloud.accuracy:.3f} (chance {cloud.chance:.3f})\nsilhouette {cloud.silhouette:.3f}",
        fontsize=8,
    )
    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)


def numbers(choices: Sequence[Choice], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a claim about separation needs, as plain data: no points, whose places mean nothing."""
    return {
        **settings,
        "measurement": MEASUREMENT,
        "choices": [
            {
                "letter": choice.letter,
                "words": choice.words,
                "classes": list(choice.names),
                "models": [
                    {
                        "n": len(cloud.labels),
                        **{k: v for k, v in asdict(cloud).items() if k not in ("points", "labels")},
                    }
                    for cloud in choice.clouds
                ],
            }
            for choice in choices
        ],
    }
