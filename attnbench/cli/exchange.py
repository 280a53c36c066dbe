"""`attnbench export`, `import` and `transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Runs, app
from attnbench.stages.interrupts import keeping


@app.command("export")
def export_model(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A suite's name, its folder below the runs folder, or an export."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    case: Annotated[
        str | None, typer.Option("--case", metavar="LABEL", help="The case (label or id), of several.")
    ] = None,
    diffusers: Annotated[
        bool, typer.Option("--diffusers", help="For diffusers' DiTPipeline (softmax DiT only).")
    ] = False,
    vae: Annotated[
        Path | None, typer.Option("--vae", metavar="FOLDER", help="AutoencoderKL for --diffusers; the run's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Write a run's trained model to a folder of its own.

    The averaged weights, those that were sampled from; the folder needs nothing else.
    attnbench.load_model(FOLDER) opens it.
    """
    from attnbench.commands import exchange as exchange_command

    with keeping(f"{to} is not written; run the same command again"):
        exchange_command.export(source, case, to, runs, diffusers=diffusers, vae=vae, force=force)


@app.command("import")
def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of diffusers with a DiT, hub:OWNER/NAME, or a checkpoint of facebookresearch/DiT.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; for .pt files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Make an exported folder of a pretrained DiT."""
    from attnbench.commands import exchange as exchange_command

    with keeping(f"{to} is not written; run the same command again"):
        exchange_command.import_weights(source, to, num_heads=num_heads, force=force)


@app.command("transfer")
def transfer_model(
    source: Annotated[
        Path, typer.Argument(metavar="EXPORTED", help="A folder that `attnbench export` has written.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="RECIPE", help="The target's recipe; the source's sizes.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option("--attention", metavar="NAME", help="The target's attention backend.")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--options", metavar="JSON", help="Options of that attention.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="The target's classes, if others; their embeddings start anew.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="The target's image side in pixels; the source's.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="The target's blocks, more than the source's: it grows.")
    ] = None,
    growth: Annotated[
        str | None,
        typer.Option(metavar="STRATEGY", help="How: preserve (the default), cyclic or expand."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Of the source's blocks only the first so many; all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights that are not copied.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Copy a model's weights into one with another attention.

    Or into one for other classes or another image size, or a deeper one, whose new blocks change nothing at
    first. Only what the two share; what was left is listed.
    """
    from attnbench.commands import exchange as exchange_command

    with keeping(f"{to} is not written; run the same command again"):
        exchange_command.transfer_weights(
            source,
            to,
            model=model,
            attention=attention,
            options=options,
            classes=classes,
            image_size=image_size,
            depth=depth,
            growth=growth,
            keep=keep,
            seed=seed,
            force=force,
        )
