"""`attnbench list` and `attnbench show`."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli.app import app
from attnbench.errors import UnknownNameError


@app.command("list")
def list_catalogue(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="backends, models, suites, plugins, datasets or extractors."),
    ],
) -> None:
    """List backends, models, suites, plugins, data, extractors."""
    from attnbench import console

    if kind not in console.CATALOGUES:
        raise UnknownNameError("kind of listing", kind, console.CATALOGUES)
    console.print_table(console.CATALOGUES[kind]())


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
