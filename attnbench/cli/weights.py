"""`attnbench weights list` and `fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import app

weights_app = typer.Typer(
    help="Show or fetch the weights files of feature extractors.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def weights_list() -> None:
    """Show where weights files are looked for, and what is there."""
    from attnbench.commands import weights as weights_command

    weights_command.print_list()


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The extractor, e.g. inception-tf.")],
    yes: Annotated[bool, typer.Option("--yes", help="Fetch without asking.")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to; by default the cache folder.")
    ] = None,
) -> None:
    """Download an extractor's weights file after asking; check it."""
    from attnbench.commands import weights as weights_command

    path = weights_command.fetch(name, to, yes=yes)
    typer.echo(f"{path}: there, SHA-256 as expected")
    if to is not None:
        typer.echo(
            f"use it with `attnbench evaluate --weights {path}`, or in a suite: -o evaluate.weights={path}"
        )
