"""`attnbench profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import Device, Quiet, app


@app.command()
def profile(
    res: Annotated[
        str, typer.Option(metavar="PX,PX", help="Sides in pixels of the decoded image.")
    ] = "256,512,1024,2048",
    models: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Model recipes; table1 to table8: those of a table of arXiv:2601.13683.",
        ),
    ] = "dit-s,sana-s,dydi-lit-s",
    measure: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Quantities.")
    ] = "macs,params,latency,memory",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, too.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the latency measurement.")] = 5,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    timeout_s: Annotated[
        float, typer.Option(help="Seconds a row may take; beyond them it is skipped.")
    ] = 120.0,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the label embedding.")] = 1000,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure multiply-adds, latency and memory of model recipes.

    A resolution is in pixels of the decoded image: 256 means a 32x32 latent for latent models, an eighth, as
    Stable Diffusion's autoencoders make it; `run` takes the suite's own. A row that runs out of its time is
    skipped; its reason stands below the table.

    Exit code 1 when a row failed, or when none could be measured whole; 0 otherwise.
    """
    from attnbench.commands import profile as profile_command

    spec = profile_command.spec_from(
        res=res,
        measure=measure,
        batch_size=batch_size,
        rounds=rounds,
        precision=precision,
        timeout_s=timeout_s,
    )
    raise typer.Exit(
        profile_command.profile(
            models, spec, num_classes=num_classes, json_file=json_file, device=device, quiet=quiet
        )
    )
