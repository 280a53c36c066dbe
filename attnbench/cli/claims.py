"""`attnbench claims`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Runs, app


@app.command()
def claims(
    run: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Suites' names, or folders of runs; one or more.")
    ],
    format: Annotated[str, typer.Option("--format", help="text, md or json (by --to's ending; text).")] = "",
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it here instead.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Test the claims of arXiv:2601.13683 on runs of your own.

    Each claim: the paper's numbers, yours, the test, and supported, contradicted, not distinguishable or not
    tested. Exit code 1 where none could be tested.
    """
    from attnbench.commands import claims as command

    raise typer.Exit(command.claims(run, format, to, runs))
