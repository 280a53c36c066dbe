"""`attnbench samples export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Runs, app

samples = typer.Typer(
    help="Use the sampled images of a suite that has run.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(samples, name="samples")


@samples.callback()
def samples_group() -> None:
    """Use the sampled images of a suite that has run."""


@samples.command("export")
def samples_export(
    suite: Annotated[
        str, typer.Argument(metavar="RUN", help="A suite's name, or its folder below the runs folder.")
    ],
    npz: Annotated[
        Path | None, typer.Option("--npz", metavar="FILE", help="One file as ADM's evaluator reads it.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="One PNG per image; run again to go on.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--case", metavar="LABEL", help="The case, where there are several.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="The first so many images; all.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Write a finished case's images as PNG files or npz.

    The npz holds arr_0, uint8 [N, H, W, 3] (grey images: their channel three times), and arr_1, their
    classes, int64 [N].
    """
    from attnbench.commands import samples as samples_command
    from attnbench.storage.run_folders import run_folder

    samples_command.export(run_folder(suite, runs), npz=npz, png=png, label=label, count=count)
