"""`attnbench figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Device, Quiet, Runs, app


@app.command()
def figures(
    named: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Suites' names, or folders of their runs.")
    ],
    figure: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Of 1a,1b,3,4,8,9,10,11,pareto; all that can be drawn."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to (paper-figures/ in the first run).")
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="svg, png or pdf (grids of samples: png, else svg).")
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Cases by label, such as '*guidance_scale=4.0'; repeat."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of classes, with commas; for figure 11 also close:N or random:N."),
    ] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="N,N", help="Which samples of each class, from 0.")
    ] = None,
    cost: Annotated[
        str, typer.Option(help="For 1b: macs, macs-paper, latency, memory, training-compute, training-time.")
    ] = "macs",
    quality: Annotated[
        str | None, typer.Option(help="For 1b and pareto: a metric, as the report calls it (the first).")
    ] = None,
    extractor: Annotated[str | None, typer.Option(help="For 11: feature network (the suite's).")] = None,
    weights: Annotated[Path | None, typer.Option(help="For 11: the network's weights file.")] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw the figures of arXiv:2601.13683 from your own runs.

    1a: cost against resolution; 1b: quality against cost; 3, 4, 8, 9, 10: samples of every model from the
    same noise and class; 11: t-SNE; pareto: quality against each cost with its front. With PNG or PDF a
    figures.tex lies beside them.
    """
    from attnbench.commands import figures as command

    command.figures(
        command.FiguresRequest(
            named=tuple(named),
            figures=figure,
            to=to,
            file_format=file_format,
            cases=tuple(case or ()),
            classes=classes,
            samples=samples,
            cost=cost,
            quality=quality,
            extractor=extractor,
            weights=weights,
        ),
        runs=runs,
        device=device,
        quiet=quiet,
    )
