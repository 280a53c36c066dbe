"""What `attnbench report --layout` and `--format` do: a table of the paper or of a run, in any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from attnbench import console
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.models.published import TABLES
from attnbench.models.recipes import load_recipes
from attnbench.report import comparison_table
from attnbench.report.formats import format_of, known_format, render
from attnbench.report.formats.flat import flattened
from attnbench.report.paper.filling import fill
from attnbench.report.paper.layout import layout_table
from attnbench.report.paper.published import paper_table
from attnbench.report.tables import Table, plain
from attnbench.results import Result
from attnbench.specs import ModelConfig
from attnbench.storage.atomic import atomic_write
from attnbench.storage.run_folders import read_run

COMPARISON = "comparison"
LAYOUTS = (COMPARISON, *TABLES)


def report_layout(names: Sequence[str], layout: str, format: str, to: Path | None, runs: Path) -> int:
    """Show runs in a layout, print it or write it to a file; return the exit code.

    An empty `layout` is the comparison of one run, an empty `format` that of the file's ending, or the
    terminal. 1 where no result stands in any row. Raises UserInputError for an unknown layout or format, a
    run named twice, and results that cannot be read.
    """
    layout = layout or COMPARISON
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    if to is not None and to.is_dir():
        raise UserInputError(f"--to {to} is a folder; name a file in it, such as {to / layout}.tex")
    format = format or ("" if to is None else format_of(to))
    if format:
        known_format(format)
    results = read_runs(names, runs)
    table = _comparison(results) if layout == COMPARISON else _paper_table(layout, results)
    if table is None:
        return 1
    if not format:
        console.print_table(flattened(table, keep_groups=True))
    elif to is None:
        typer.echo(render(table, format), nl=False)
    else:
        atomic_write(to, render(table, format).encode())
        console.print_notice(f"{layout}: {to} ({format})")
    return 0


def read_runs(names: Sequence[str], runs: Path) -> dict[str, list[Result]]:
    """Return the results of each run by a name that tells it from the others.

    Raises UserInputError for a run named twice and for results that cannot be read.
    """
    read = [read_run(name, runs) for name in names]
    folders = [run.folder.resolve() for run in read]
    twice = next((run for run, folder in zip(read, folders, strict=True) if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserInputError(f"{twice.folder} is named twice; name each run once")
    suites = [run.suite for run in read]
    found = {}
    for run in read:
        name = run.suite if suites.count(run.suite) == 1 else f"{run.suite} in {run.folder}"
        found[name] = list(run.results)
    return found


def recipes_in_full(runs: Mapping[str, Sequence[Result]]) -> dict[str, ModelConfig] | None:
    """Return all recipes with every option written out; None where no result is of one with a published row.

    Options are known by the backends, whose import takes seconds that other runs are spared.
    """
    recipes = load_recipes()
    used = {str(r.case.get("model", {}).get("name")) for results in runs.values() for r in results}
    if not any(recipes[name].published for name in used if name in recipes):
        return None
    from attnbench.models.options import with_all_options
    from attnbench.plugins import registry

    return {
        name: with_all_options(config, registry()) if name in used else config
        for name, config in recipes.items()
    }


def _comparison(runs: Mapping[str, Sequence[Result]]) -> Table:
    if len(runs) > 1:
        raise UserInputError(
            f"{len(runs)} runs: --layout table1 to table8 puts several into one table; to hold them against "
            "each other use attnbench compare"
        )
    return comparison_table(next(iter(runs.values())))


def _paper_table(layout: str, runs: Mapping[str, Sequence[Result]]) -> Table | None:
    """Return a table of the paper with the runs in it; None, and why on stderr, where nothing fits."""
    filling = fill(paper_table(layout), runs, recipes_in_full(runs))
    if not filling.empty:
        return layout_table(filling, layout)
    console.print_notice(f"no result stands in a row of {layout} ({filling.table.title}); nothing is written")
    for why, labels in filling.left_out.items():
        console.print_notice(plain(f"{why}: {', '.join(labels)}"))
    console.print_notice(f"its rows: {', '.join(dict.fromkeys(row.recipe for row in filling.table.rows))}")
    return None
