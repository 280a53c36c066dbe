"""What the command line prints: progress, listings, plans and tables, through rich.

Without a terminal nothing but plain text comes out: no bars, no colours, no control codes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from attnbench.errors import StorageError
from attnbench.report import TerminalTable, comparison_table
from attnbench.report.tables import Column, Row, Table, text_cell
from attnbench.results import Result

if TYPE_CHECKING:
    from attnbench.plan import PlannedCell
    from attnbench.profiling.rows import ProfileRow
    from attnbench.runner import Listener
    from attnbench.suite import Suite

PLAIN_WIDTH = 200  # columns when the output is not a terminal


def console(*, stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables when nobody watches."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def _bars(quiet: bool) -> Progress:
    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=screen,
        disable=quiet or not screen.is_terminal,
        transient=True,
    )


@contextlib.contextmanager
def progress_bar(title: str, *, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a sink (done, total, note) that draws one bar with the time left."""
    with _bars(quiet) as bars:
        task = bars.add_task(escape(title), total=None, note="")
        yield lambda done, total, note: bars.update(task, completed=done, total=total, note=escape(note))


@contextlib.contextmanager
def run_listener(num_cells: int, *, quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows all cells, the stage at work, and one line per finished cell."""
    from attnbench.runner import Listener

    with _bars(quiet) as bars:
        cells = bars.add_task("cells", total=num_cells, note="")
        stages: dict[str, TaskID] = {}

        def show(title: str, done: int, total: int, note: str) -> None:
            if title not in stages:
                for task in stages.values():
                    bars.remove_task(task)
                stages.clear()
                stages[title] = bars.add_task(escape(title), total=total, note="")
            bars.update(stages[title], completed=done, total=total, note=escape(note))

        def finished(result: Result, cached: bool) -> None:
            bars.advance(cells)
            if not quiet:
                word = "cached" if cached else result.status
                reason = f": {result.reason}" if result.reason else ""
                bars.console.print(escape(f"{word:>8}  {result.label}{reason}"))

        yield Listener(
            progress=lambda case, stage, done, total, note: show(f"{case.label}: {stage}", done, total, note),
            finished=finished,
            profiling=lambda done, total, note: show("profile", done, total, note),
        )


def print_comparison(results: Sequence[Result]) -> None:
    """Print the comparison table of a suite."""
    console().print(TerminalTable(comparison_table(results)))


def print_table(table: Table) -> None:
    """Print any table."""
    console().print(TerminalTable(table))


def listing(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> Table:
    """Make a table of plain words."""
    return Table(
        title=title,
        columns=tuple(Column(title=name, numeric=False) for name in columns),
        rows=tuple(Row(cells=tuple(text_cell(word) for word in row)) for row in rows),
        notes=tuple(notes),
    )


def backends() -> Table:
    """List attention backends and who provides them."""
    from attnbench.plugins import registry

    rows = [
        (name, p.record.complexity, p.record.summary, p.record.source, p.origin)
        for name, p in registry().backends.items()
    ]
    return listing("attention backends", ("name", "in tokens", "what it is", "source", "provided by"), rows)


def extractors() -> Table:
    """List feature extractors and who provides them."""
    from attnbench.plugins import registry

    rows = [
        (
            name,
            f"FD-{p.record.suffix}" if p.record.suffix else "FID",
            p.record.summary,
            p.record.source,
            p.origin,
        )
        for name, p in registry().extractors.items()
    ]
    columns = ("name", "its Frechet distance", "what it is", "source", "provided by")
    return listing("feature extractors", columns, rows)


def plugins() -> Table:
    """List plugins, the broken ones with their reason."""
    from attnbench.plugins import registry

    rows = [
        (row.name, row.origin, row.status, ", ".join(row.provides) or row.reason) for row in registry().rows
    ]
    return listing("plugins", ("plugin", "from", "status", "provides, or why not"), rows)


def models() -> Table:
    """List model recipes."""
    from attnbench.models.recipes import load_recipes

    rows = [
        (
            c.name,
            str(c.depth),
            str(c.dim),
            str(c.num_heads),
            c.ffn.kind,
            ", ".join(sorted(c.attention_names())),
            " ".join(table.removeprefix("table") for table in c.published),
            c.summary,
        )
        for c in load_recipes().values()
    ]
    columns = ("name", "depth", "dim", "heads", "ffn", "attention", "tables", "what it is")
    return listing("model recipes (tables: of arXiv:2601.13683)", columns, rows)


def suites() -> Table:
    """List shipped suites."""
    from attnbench.suite_files import list_suites

    return listing(
        "suites", ("name", "question", "file"), [(s.name, s.question, str(s.path)) for s in list_suites()]
    )


def datasets() -> Table:
    """List data sources."""
    from attnbench.data import list_datasets

    rows = [(d.name, d.summary, d.source, d.licence) for d in list_datasets()]
    return listing("datasets", ("name", "what it is", "source", "licence"), rows)


def print_plan(suite: Suite, cells: Sequence[PlannedCell]) -> None:
    """Print every cell, what is finished, and what the rest will take."""
    rows = []
    for cell in cells:
        cost = ("cannot run", "") if cell.problem else (_duration(cell.time_s), _size(cell.disk_bytes))
        rows.append((cell.case.label, ", ".join(cell.finished) or "nothing", *cost, cell.problem))
    total = (_duration(sum(c.time_s for c in cells)), _size(sum(c.disk_bytes for c in cells)))
    notes = (
        f"{len(cells)} cells; about {total[0]} and {total[1]} to go on this machine",
        "estimates from closed-form multiply-adds and a quick matmul measurement; nothing was run",
    )
    columns = ("cell", "finished", "time left", "disk", "problem")
    print_table(listing(f"plan of {suite.name}", columns, rows, notes))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def print_profile(rows: Sequence[ProfileRow], device: str) -> None:
    """Print the cost of every model at every resolution; an empty column was not measured."""
    numbers: list[tuple[str, str, Callable[[ProfileRow], str]]] = [
        ("params", "M", lambda r: _number(r.params, 1e6, 2)),
        ("MACs (published)", "G", lambda r: _number(r.macs_published, 1e9, 2)),
        ("MACs (paper)", "G", lambda r: _number(r.macs_paper, 1e9, 4 if r.macs_published else 2)),
        ("MACs (full)", "G", lambda r: _number(r.macs_full, 1e9, 3)),
        ("of that attention", "G", lambda r: _number(r.attention_macs, 1e9, 3)),
        ("latency", "ms, median", lambda r: _number(r.latency_ms, 1, 2)),
        ("peak memory", "MiB", lambda r: _number(r.peak_memory_mib, 1, 0)),
        ("of that by the pass", "MiB", lambda r: _number(r.extra_memory_mib, 1, 0)),
    ]
    shown = [(name, unit, get) for name, unit, get in numbers if any(get(row) for row in rows)]
    table = Table(
        title=f"cost on {device}, one forward pass, multiply-adds at batch 1 without guidance",
        columns=(
            Column(title="model", numeric=False),
            Column(title="resolution", unit="px"),
            Column(title="tokens"),
            *(Column(title=name, unit=unit) for name, unit, _ in shown),
            Column(title="status", numeric=False),
        ),
        rows=tuple(
            Row(
                cells=(
                    text_cell(row.model),
                    text_cell(str(row.resolution)),
                    text_cell(str(row.tokens)),
                    *(text_cell(get(row)) for _, _, get in shown),
                    text_cell(row.status + (f": {row.reason}" if row.reason else "")),
                ),
                status=row.status,
            )
            for row in rows
        ),
    )
    print_table(table)


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value / scale:.{digits}f}"


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON; raises StorageError where that cannot be done."""
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
