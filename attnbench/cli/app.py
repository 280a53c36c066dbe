"""The command line itself, and the options several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench import __version__

app = typer.Typer(
    name="attnbench",
    help="What does an attention cost, and what quality does it buy, in one diffusion transformer?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SuiteArgument = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite file, or the name of a shipped suite.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="Override a setting.")
]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        "--case", metavar="LABEL", help="Only cases of this label; * and ? as in a shell. Repeatable."
    ),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", metavar="N", help="Every case with the seeds 0 to N - 1.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for everything a run keeps.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print results only.")]
RUNS = Path("runs")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What does an attention cost, and what quality does it buy, in one diffusion transformer?"""
