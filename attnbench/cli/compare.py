"""`attnbench compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Runs, app


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs (folder, or name below --runs), results.jsonl of other machines or commits, or files "
            "of `profile --json`; the first is the base.",
        ),
    ],
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="LABEL", help="Only this case, or 'dydila*'; may be repeated."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Hold --case against this one, of the same run or of the first."),
    ] = None,
    equal: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="At equal macs (of the whole training), latency, steps or training-time."
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Of quality,loss,latency,memory,size,training,sampling,inside,other, or single quantities; "
            "inside (a diagnosis) only where it is named.",
        ),
    ] = "",
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITIONS", help="Exit code 1 where worse by more for sure: 'latency>5%,FID>1'."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Adjusted p values below it make a verdict.")] = 0.05,
    time_margin: Annotated[
        str, typer.Option(metavar="6%", help="A time that differs by less is not called different.")
    ] = "6%",
    session_margin: Annotated[
        str, typer.Option(metavar="20%", help="The same between two runs: less on a machine of your own.")
    ] = "20%",
    force: Annotated[
        bool, typer.Option("--force", help="Compare what is not alike, with footnotes.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", metavar="FORM", help="table, md or json, on standard output.")
    ] = "table",
    runs: Runs = RUNS,
) -> None:
    """Hold runs, or cases of one run, against each other.

    Per case and quantity: difference, ratio, 95 % interval, and a verdict where the data allow one after
    adjusting for the number of comparisons. Refuses what is not alike (hardware, data, n, extractor, ...)
    unless --only leaves it out or --force marks it.

    Exit code 1 where a condition of --fail-on is met, or nothing could be compared; 2 for wrong input.
    """
    from attnbench.commands import compare as command

    raise typer.Exit(
        command.compare_runs(
            command.Options(
                runs=names,
                folder=runs,
                cases=case or [],
                against=against,
                equal=equal,
                only=only,
                fail_on=fail_on,
                alpha=alpha,
                time_margin=time_margin,
                session_margin=session_margin,
                force=force,
                format=format_,
            )
        )
    )
