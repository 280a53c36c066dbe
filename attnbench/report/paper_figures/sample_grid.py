"""Figures 3, 4, 8, 9 and 10: the same noise and class for every model, one row a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnbench.report.drawing import distinct
from attnbench.report.paper_figures.families import SIZES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]  # [H, W, C]
_SMALLEST_SIDE = 48  # pixels; smaller images are enlarged by a whole factor, without smoothing
_GAP = 2  # white pixels between images
_GROUP_GAP = 0.35  # of a cell, between sizes
_CELL_INCHES = 0.62
_LETTER_INCHES = 0.078
_LINE_INCHES = 0.2


@dataclass(frozen=True, kw_only=True)
class ModelSamples:
    """What one model drew: one image per column."""

    series: str
    size: str
    images: Sequence[Image]


def draw_samples(models: Sequence[ModelSamples], columns: Sequence[str], heading: str) -> Figure:
    """Return rows of models, their sizes as groups of columns; call it within `drawing()`.

    Every group has the same columns, called by their classes. A place is empty where a family has no model of
    a size.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(model.series for model in models))
    sizes = sorted({model.size for model in models}, key=lambda s: SIZES.index(s) if s in SIZES else -1)
    canvas, lefts, cell = _canvas(models, rows, sizes, len(columns))
    height, width = canvas.shape[:2]
    labels, classes = distinct(rows, 26), distinct(columns, 16)
    left = 0.15 + _LETTER_INCHES * max(map(len, labels))
    slanted = max(map(len, classes)) * _LETTER_INCHES > _CELL_INCHES
    top = 0.35 + _LINE_INCHES * (1 + heading.count("\n")) + (_LINE_INCHES if len(sizes) > 1 else 0.0)
    top += 0.62 * _LETTER_INCHES * max(map(len, classes)) if slanted else 0.0
    inch = _CELL_INCHES / cell  # per pixel of the canvas
    right = 0.12 + (0.62 * _LETTER_INCHES * max(map(len, classes)) if slanted else 0.0)
    size = (left + width * inch + right, top + height * inch + 0.08)
    figure = Figure(figsize=size, dpi=max(150.0, 1 / inch))
    axes = figure.add_axes((left / size[0], 0.08 / size[1], width * inch / size[0], height * inch / size[1]))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, label in enumerate(labels):
        axes.text(-0.12 * cell, (row + 0.5) * cell, label, ha="right", va="center", fontsize=9)
    for group, first in zip(sizes, lefts, strict=True):
        for number, name in enumerate(classes):
            axes.text(
                first + (number + 0.5) * cell, -0.08 * cell, name, va="bottom", fontsize=8,
                ha="left" if slanted else "center", rotation=38 if slanted else 0, rotation_mode="anchor",
            )  # fmt: skip
        if len(sizes) > 1:
            middle = (first + len(columns) * cell / 2) * inch + left
            above = 1 - (0.12 + _LINE_INCHES * (1 + heading.count("\n"))) / size[1]
            called = f"size {group}" if group else "one size"
            figure.text(middle / size[0], above, called, ha="center", va="top")
    figure.text(0.1 / size[0], 1 - 0.1 / size[1], heading, va="top", fontsize=9)
    return figure


def _canvas(
    models: Sequence[ModelSamples], rows: Sequence[str], sizes: Sequence[str], columns: int
) -> tuple[Image, list[int], int]:
    """Return all images on one white canvas [H, W, 3], the left edge of each group, the side of a cell."""
    sides = [max(image.shape[:2]) for model in models for image in model.images]
    side = max(_SMALLEST_SIDE, *sides)
    cell = side + _GAP
    step = columns * cell + round(_GROUP_GAP * cell)
    lefts = [group * step for group in range(len(sizes))]
    canvas = np.full((len(rows) * cell, lefts[-1] + columns * cell, 3), 255, np.uint8)
    for model in models:
        for number, image in enumerate(model.images):
            shown = _enlarged(image, side)
            height, width = shown.shape[:2]
            top = rows.index(model.series) * cell + (cell - height) // 2
            left = lefts[sizes.index(model.size)] + number * cell + (cell - width) // 2
            canvas[top : top + height, left : left + width] = shown
    return canvas, lefts, cell


def _enlarged(image: Image, side: int) -> Image:
    scale = max(1, side // max(image.shape[:2]))
    return image.repeat(scale, axis=0).repeat(scale, axis=1)  # grey is broadcast to three channels
