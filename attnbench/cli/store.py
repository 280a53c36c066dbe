"""`attnbench store list` and `prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Runs, app

store_app = typer.Typer(
    help="Show or clear the store of finished stages.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(store_app, name="store")

Keep = Annotated[
    list[Path] | None,
    typer.Option("--keep", metavar="RUN", help="A run's folder elsewhere, whose stages count as named, too."),
]


@store_app.callback()
def store_group() -> None:
    """Show or clear the store of finished stages."""


@store_app.command("list")
def store_list(runs: Runs = RUNS, keep: Keep = None) -> None:
    """Show the folders of the store, with sizes and the runs that name them."""
    from attnbench.commands import store as store_command

    store_command.print_list(runs, keep or [])


@store_app.command("prune")
def store_prune(
    runs: Runs = RUNS,
    keep: Keep = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what killed runs left, to go on from.")
    ] = False,
    features: Annotated[
        bool, typer.Option("--features", help="Also features of images, computed again when asked for.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove finished stages that no result names.

    Named is what any line in the results.jsonl of any run below the runs folder needs, of older overrides,
    too. What another command works on stays, and so does what a killed run would go on from.
    """
    from attnbench.commands import store as store_command

    store_command.prune(runs, keep or [], unfinished=unfinished, features=features, dry_run=dry_run, yes=yes)
