"""`attnbench profile`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import Device, Quiet, app

RESOLUTIONS = "256,512,1024,2048"


@app.command()
def profile(
    res: Annotated[
        str, typer.Option(metavar="PX,PX", help="Sides in pixels of the decoded image.")
    ] = RESOLUTIONS,
    models: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Model recipes, dit-s,sana-s,dydi-lit-s where nothing is named; table1 to table8: those of "
            "a table of arXiv:2601.13683.",
        ),
    ] = "",
    backends: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Attention backends, each put into --recipe.")
    ] = "",
    recipe: Annotated[str, typer.Option(metavar="NAME", help="The model that --backends are put into.")] = (
        "dit-s"
    ),
    autoencoder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of the models' latents: its grid, and --scope end-to-end."),
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="PATTERN", help="Of all these, those whose name matches, e.g. 'dydi*'.")
    ] = "",
    measure: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Quantities: macs, params, latency, memory, memory-plan, roofline, energy.",
        ),
    ] = "macs,params,latency,memory,roofline",
    fit: Annotated[
        str,
        typer.Option(metavar="24GiB", help="Plan the largest batch that so much memory holds; runs nothing."),
    ] = "",
    mode: Annotated[
        str,
        typer.Option(help="forward; train (forward, backward, AdamW); sample (one guided sampler step)."),
    ] = "forward",
    scope: Annotated[
        str, typer.Option(help="attention or block (of the middle block), model, end-to-end.")
    ] = "model",
    batch: Annotated[
        str, typer.Option("--batch", "--batch-size", metavar="N,N", help="Images per pass.")
    ] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the latency, at least.")] = 6,
    interval: Annotated[
        float,
        typer.Option(help="More rounds until the 95 % interval is this share of the median wide."),
    ] = 0.05,
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16 (by autocast); where not given, fp32 on a CPU, bf16 on a GPU.")
    ] = "",
    threads: Annotated[
        int, typer.Option(help="CPU threads of a pass; 0: as many as help it here and now.")
    ] = 0,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile each pass; compile time is a column.")
    ] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Replay captured CUDA graphs.")] = False,
    within: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Time of it all; rows that do not fit are left out. 0: any."),
    ] = 150.0,
    timeout_s: Annotated[
        float, typer.Option(help="Seconds a row may take; beyond them it is skipped.")
    ] = 120.0,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the label embedding.")] = 1000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here, each as soon as it is finished.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a page with figures there: costs, growth, crossovers."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take over the finished rows of the file of --json.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure the cost of models and attentions, and crossovers.

    Multiply-adds, latency, memory and share of the machine's ceiling, of model recipes and of attention
    backends in one of them.

    A resolution is in pixels of the decoded image: 256 means a 32x32 latent for latent models, an eighth, as
    Stable Diffusion's autoencoders make it; `run` takes the suite's own. A row that runs out of its time, or
    would not fit into --within, is skipped; its reason stands below the table.

    Exit code 1 when a row failed, or when none could be measured whole; 0 otherwise.
    """
    from attnbench.commands import profile as command

    options = command.Options(
        res=res,
        models=models,
        backends=backends,
        recipe=recipe,
        only=only,
        batch=batch,
        fit=fit,
        num_classes=num_classes,
        device=device,
        within_s=within,
        json_file=json_file,
        report=report,
        autoencoder=autoencoder,
        resume=resume,
        command=shlex.join(["attnbench", *sys.argv[1:]]),
        quiet=quiet,
        settings={
            "measure": measure,
            "mode": mode,
            "scope": scope,
            "rounds": rounds,
            "interval": interval,
            "precision": precision,
            "threads": threads or None,
            "compile": compile,
            "cuda_graphs": cuda_graphs,
            "timeout_s": timeout_s,
        },
    )
    raise typer.Exit(command.profile(options))
