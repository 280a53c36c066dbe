"""`attnbench status`."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Cases, Overrides, Runs, Seeds, app


@app.command()
def status(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A suite's name or file, or the folder of a run.")
    ],
    override: Overrides = None,
    case: Cases = None,
    seeds: Seeds = None,
    runs: Runs = RUNS,
) -> None:
    """Say which cases of a run are finished, running or failed.

    The others are queued, failed ones say why. Whatever runs them, from the store alone, from any machine
    that sees it. The cases are those of the last `attnbench run` that has ended; before one has, or with -o,
    --case or --seeds, those of the suite.
    """
    from attnbench.commands import status as command

    command.status(run, override or [], case or [], seeds, runs)
