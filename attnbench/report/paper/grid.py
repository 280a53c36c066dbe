"""The cells of a filled table by row, line and column, before they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnbench.report.paper.filling import Filling, Line
from attnbench.report.paper.published import GFLOPS, Metric, PaperRow
from attnbench.report.paper.values import Value, gflops_of, value_of


@dataclass(frozen=True)
class Place:
    """One column of numbers: a metric at a guidance scale, or GFLOPs."""

    metric: Metric
    scale: str = ""
    index: int = 0
    """Position among the metrics of one scale."""

    def printed(self, row: PaperRow) -> float | None:
        """Return what the paper has in this column."""
        return row.gflops if self.metric is GFLOPS else row.cfg[self.scale][self.index]


@dataclass(frozen=True)
class Grid:
    """A filling, its columns, and a value for each of its lines below each row."""

    filling: Filling
    places: tuple[Place, ...]
    values: Mapping[tuple[int, Line, Place], Value]

    def lines_below(self, index: int) -> list[Line]:
        """Return the lines below a row: what a scaled-down line lacks of its size's rows is seen, too."""
        table, slots = self.filling.table, self.filling.slots
        smallest = table.rows[index].size == table.sizes[0]
        return [
            line
            for line in self.filling.lines
            if any((index, line, scale) in slots for scale in table.scales) or (line.recipe and smallest)
        ]

    def one_row_a_recipe(self, size: str) -> list[int]:
        """Return the rows of a size; of two rows of one recipe (DiT-S and DiT-S* of Table 3) the last."""
        rows = {row.recipe: i for i, row in enumerate(self.filling.table.rows) if row.size == size}
        return sorted(rows.values())


def grid_of(filling: Filling) -> Grid:
    """Look every cell of a filling up."""
    table = filling.table
    places = [
        Place(metric, scale, index) for scale in table.scales for index, metric in enumerate(table.columns)
    ]
    if any(row.gflops is not None for row in table.rows):
        places.append(Place(GFLOPS))
    values = {
        (index, line, place): _value(filling, index, line, place)
        for index in range(len(table.rows))
        for line in filling.lines
        for place in places
    }
    return Grid(filling, tuple(places), values)


def number(value: float, decimals: int, sign: str = "") -> str:
    """Return a number with the true minus sign; `+` as sign shows that of positive ones, too."""
    return f"{value:{sign}.{decimals}f}".replace("-", "−")


def _value(filling: Filling, index: int, line: Line, place: Place) -> Value:
    if place.metric is GFLOPS:
        return gflops_of(filling, index, line)
    return value_of(filling.slots.get((index, line, place.scale)), place.metric)
