"""Commands that show and check what there is: list, show, check, new-plugin, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import Quiet, app
from attnbench.errors import UnknownNameError


@app.command("list")
def list_things(
    kind: Annotated[str, typer.Argument(help="backends, models, suites, plugins, datasets or extractors.")],
) -> None:
    """List what there is of one kind."""
    from attnbench import console

    listings = {
        "backends": console.backends,
        "models": console.models,
        "suites": console.suites,
        "plugins": console.plugins,
        "datasets": console.datasets,
        "extractors": console.extractors,
    }
    if kind not in listings:
        raise UnknownNameError("kind of listing", kind, listings)
    console.print_table(listings[kind]())


@app.command()
def show(name: Annotated[str, typer.Argument(help="A backend, model, suite, dataset or extractor.")]) -> None:
    """Show everything known about NAME: options with their defaults, sizes, sources."""
    from attnbench.show import show as show_name

    show_name(name)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Backends, or pkg.module:Object; none: all built-ins.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--options", metavar="JSON", help="Options as a JSON object; repeat for several sets."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every row here, too.")] = None,
    quiet: Quiet = False,
) -> None:
    """Ask of attention backends what they promise: shapes, gradients, costs, complexity, plumbing.

    Exit code 1 when a check fails, or passes although the backend says it fails.
    """
    from attnbench import check_command

    raise typer.Exit(check_command.check(names or [], options or [], json_file, quiet=quiet))


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The new backend's name, e.g. my-attention.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a package with one attention of your own, ready to install, check and change."""
    from attnbench.scaffold import write_plugin

    written = write_plugin(name, folder)
    typer.echo(f"{written}: written; next: pip install -e {written} && attnbench check {name}")


@app.command()
def schema() -> None:
    """Print the JSON schema of suite files, for editors."""
    import json

    from attnbench.suite import suite_json_schema

    typer.echo(json.dumps(suite_json_schema(), indent=2))
