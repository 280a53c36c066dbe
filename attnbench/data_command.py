"""What `attnbench data` does: make a training set out of a folder or archive, show its card, check it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attnbench.data.card import Card
    from attnbench.data.selection import Selection
    from attnbench.report.tables import Table

app = typer.Typer(
    name="data",
    help="Make training sets out of folders and archives of images; show and check them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(help="A folder that `attnbench data prepare` has written.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print results only.")]
SHOWN_CLASSES = 20
SHOWN_FILES = 5


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(help="Folder, tar, tar.xz, tar.gz or tar.bz2 of images in one folder per class.")
    ],
    to: Annotated[Path, typer.Option("--to", help="New folder for the set.")],
    image_size: Annotated[int, typer.Option(min=1, help="Side of the cropped images in pixels.")] = 256,
    classes: Annotated[int | None, typer.Option(min=1, help="Take so many classes, drawn by a seed.")] = None,
    class_seed: Annotated[int | None, typer.Option(min=0, help="Seed of --classes; 0 by default.")] = None,
    class_list: Annotated[
        Path | None, typer.Option(help="Take the classes this file names, one folder name a line.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="N|FRACTION|PART",
            help="Keep N images or a fraction of each class out of training, or use the part of the source "
            "of that name (val, validation, test). By default the only such part there is, else nothing.",
        ),
    ] = None,
    held_out_from: Annotated[
        Path | None,
        typer.Option(
            help="Hold out the images of a second folder or archive: one folder per class, named as in "
            "SOURCE, or any folders with --labels. Images of classes that are not taken are left out."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Classes of the images of --held-out-from: ILSVRC2012_devkit_t12.tar.gz, Kaggle's "
            "LOC_val_solution.csv, or lines of `file name,class folder` (comma, tab or space)."
        ),
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of files that may fail to decode; all are listed.")
    ] = 0.001,
    licence: Annotated[str | None, typer.Option(help="Licence of the images, for the card.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; all cores by default. Changes no byte.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make a training set in memory-mapped shards out of SOURCE.

    Images are centre-cropped as DiT does and kept as uint8 RGB. SOURCE has one folder per class, or train/
    (and val/ or test/) with one folder per class in each. Names that start with a dot are left out. Sub-IN
    of arXiv:2601.13683 is --classes 100; its list of classes is not published, so that yours is another
    draw. A killed run goes on when the same command is run again; the same command gives the same bytes
    with any number of workers.

    ImageNet's archives are read as they are, and so is Kaggle's copy of it:

    \b
      attnbench data prepare ILSVRC2012_img_train.tar --to in256 \\
        --held-out-from ILSVRC2012_img_val.tar --labels ILSVRC2012_devkit_t12.tar.gz
      attnbench data prepare ILSVRC/Data/CLS-LOC --to in256 \\
        --held-out-from ILSVRC/Data/CLS-LOC/val --labels LOC_val_solution.csv
    """
    from attnbench import console
    from attnbench.data.preparing import prepare as make
    from attnbench.data.request import Request

    request = Request(
        source=source,
        folder=to,
        image_size=image_size,
        selection=_selection(classes, class_seed, class_list, held_out),
        held_out_from=held_out_from,
        labels=labels,
        max_unreadable=max_unreadable,
        workers=workers or len(os.sched_getaffinity(0)),
        **({} if licence is None else {"licence": licence}),
    )
    with console.progress_bar("prepare", quiet=quiet) as progress:
        card = make(request, progress, functools.cache(console.print_notice))  # each notice once
    console.print_table(_summary(to, card))
    typer.echo(f"use it with: data: {{name: prepared, path: {to.absolute()}, image_size: {image_size}}}")


@app.command()
def show(folder: Folder) -> None:
    """Print the card of the set in FOLDER."""
    from attnbench import console
    from attnbench.data.card import read_card

    console.print_table(_summary(folder, read_card(folder)))


@app.command()
def verify(folder: Folder, quiet: Quiet = False) -> None:
    """Check every file of a set against its checksum.

    Exit code 1 where one differs.
    """
    from attnbench import console
    from attnbench.data.card import read_card
    from attnbench.data.card import verify as check

    with console.progress_bar("verify", quiet=quiet) as progress:
        faults = check(folder, progress)
    if faults:
        for fault in faults:
            typer.echo(fault)
        typer.echo(f"{folder}: {len(faults)} damaged; remove the folder and prepare the set again", err=True)
        raise typer.Exit(1)
    typer.echo(f"{folder}: all {len(list(read_card(folder).files()))} files are as the card says")


def _selection(
    classes: int | None, class_seed: int | None, class_list: Path | None, held_out: str | None
) -> Selection:
    from attnbench.data.selection import Selection, read_class_list
    from attnbench.errors import UserInputError

    if classes is not None and class_list is not None:
        raise UserInputError("--classes draws classes and --class-list names them; give one of the two")
    if classes is None and class_seed is not None:
        raise UserInputError("--class-seed draws nothing without --classes; say how many classes to draw")
    listed = None if class_list is None else read_class_list(class_list)
    return Selection(count=classes, seed=class_seed or 0, listed=listed, held_out=held_out)


def _summary(folder: Path, card: Card) -> Table:
    """Tell what a card says, checksums aside."""
    from attnbench.console import listing

    more = len(card.classes) - SHOWN_CLASSES
    names = ", ".join(card.classes[:SHOWN_CLASSES]) + (f", and {more} more" if more > 0 else "")
    rows = [
        ("source", card.source),
        ("licence", card.licence),
        ("images", f"{card.image_size}x{card.image_size}, uint8 RGB; {card.crop}"),
        ("normalisation", card.normalisation),
        ("classes", f"{len(card.classes)}: {names}"),
        ("class rule", card.class_rule),
        ("held out", card.held_out_rule),
    ]
    if card.held_out_labels:
        rows.append(("labels", f"{card.held_out_labels.name}, SHA-256 {card.held_out_labels.sha256}"))
    for name, part in card.parts.items():
        counts = part.per_class.values()
        rows.append((name, f"{part.num_images} images, {min(counts)} to {max(counts)} of a class"))
    rows.append(("unreadable", "; ".join([str(card.num_unreadable), *card.unreadable()[:SHOWN_FILES]])))
    if card.unused_parts:
        rows.append(("not used", ", ".join(f"{n} of {part}" for part, n in card.unused_parts.items())))
    if card.num_outside:
        rows.append(("in no class folder", f"{card.num_outside}, such as {', '.join(card.outside)}"))
    versions = f"attnbench {card.attnbench}, pillow {card.pillow}, numpy {card.numpy}"
    rows.append(("made with", versions))
    return listing(f"prepared training set {folder}", ("what", "value"), rows)
