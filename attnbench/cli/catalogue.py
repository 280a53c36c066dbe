"""`attnbench list` and `attnbench show`."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli.app import app


@app.command("list")
def list_catalogue(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="backends, models, suites, plugins, datasets or extractors."),
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Only entries with all of these words.")
    ] = None,
) -> None:
    """List backends, models, suites, plugins, data, extractors."""
    from attnbench import console

    console.print_table(console.catalogue(kind, words or ()))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A backend, model, suite (name or file), dataset or extractor."),
    ],
) -> None:
    """Show options, defaults, sizes and sources of one of them.

    Of a suite: its cases, what they compute and read, and what is missing; runs nothing.
    """
    from attnbench.commands.show import show as show_name

    show_name(name)
