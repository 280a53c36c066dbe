"""`attnbench check` and `attnbench new-plugin`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import Quiet, app


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Backends, or pkg.module:Object; none: all built-ins."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--options", metavar="JSON", help="Options as a JSON object; repeat for several sets."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every row here, too.")] = None,
    quiet: Quiet = False,
) -> None:
    """Check what attention backends promise.

    Shapes, gradients, costs, complexity, plumbing: each check with what was measured. Exit code 1 when a
    check fails, or passes although the backend says it fails.
    """
    from attnbench.commands import check as check_command

    raise typer.Exit(check_command.check(names or [], options or [], json_file, quiet=quiet))


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new backend's name, e.g. my-attention.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a package with an attention of your own to start from."""
    from attnbench.scaffold import write_plugin

    written = write_plugin(name, folder)
    typer.echo(f"{written}: written; next: pip install -e {written} && attnbench check {name}")
