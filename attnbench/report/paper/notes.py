"""What stands below a table of the paper: sources, tests, what compares with what, what is left out."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench.report.paper.grid import Grid
from attnbench.report.paper.published import GFLOPS, published
from attnbench.report.significance import largest_pool, method_in_words


def notes_of(grid: Grid) -> Iterator[str]:
    """Yield the notes that hold for the whole table."""
    table, lines = grid.filling.table, grid.filling.lines
    of_size = "of its size " if len(table.sizes) > 1 else ""
    yield (
        f"Published: {published().source.split(' (')[0]}, as printed; {table.dataset}, "
        f"{table.samples:,} images. Bold there: the best printed value {of_size}(the paper's bold, told from "
        "its numbers)."
    )
    yield from _seeds(grid, of_size)
    if any(row.reimplemented for row in table.rows):
        yield (
            "*: replicated by the paper's authors from released code; a measured run stands beside both rows "
            "of a system."
        )
    if any(line.comparable for line in lines):
        yield (
            "Difference: measured minus published, with a 95 % interval over seeds where there are several. "
            "Whether your images are the paper's is not known: its 100 classes are not published."
        )
    for line in lines:
        if not line.comparable:
            yield (
                f"{grid.filling.title(line)}: {line.what}; not the paper's data, models or feature network, "
                "so that its numbers compare with nothing published, at most their order."
            )
    if any(line.scale for line in lines):
        yield "CFG in a row: sampled at that guidance, which is no column's, and so set against each."
    if any(place.metric is GFLOPS for place in grid.places):
        yield "GFLOPs, measured: multiply-adds in the paper's count (macs_paper)."


def _seeds(grid: Grid, of_size: str) -> Iterator[str]:
    """Say what the seeds allow: nothing of one, else the test behind the bold."""
    found = [
        value
        for (_, _, place), value in grid.values.items()
        if value.over is not None and place.metric is not GFLOPS
    ]
    counts = {len(value.seeds) for value in found}
    if counts == {1}:
        yield "One seed per measured value: none is bold, for the spread between seeds is unknown."
    elif counts:
        columns = [
            [by_seed for i in grid.one_row_a_recipe(size) if (by_seed := grid.values[i, line, place].by_seed)]
            for line in grid.filling.lines
            for size in grid.filling.table.sizes
            for place in grid.places
            if place.metric is not GFLOPS
        ]
        yield (
            f"Measured: mean over seeds, ± their standard deviation; bold: the best {of_size}where it "
            "differs significantly from every other measured one. "
            f"{method_in_words(*largest_pool([column for column in columns if column]))} Over the columns "
            "false calls are held to 5 % (METRICS.md)."
        )
    if len(counts) > 1:
        yield f"Rows have {min(counts)} to {max(counts)} seeds."
