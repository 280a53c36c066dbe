"""`attnbench data prepare`, `show` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import Quiet, app

data_app = typer.Typer(
    name="data",
    help="Make training sets out of folders and archives of images; show and check them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(help="A folder that `attnbench data prepare` has written.")]
app.add_typer(data_app, short_help="Make training sets out of images; show and check them.")


@data_app.command()
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
            "LOC_val_solution.csv, Tiny-ImageNet's val_annotations.txt, or lines of `file name,class folder` "
            "(comma, tab or space)."
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
    (and val/ or test/) with one folder per class in each. Names that start with a dot are left out, what else
    is not taken is said first. Images with transparent pixels or more than 8 bits are unreadable; an EXIF
    orientation is not applied, of several frames the first is taken, and what is converted is counted. Sub-IN
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
    from attnbench.commands import data as data_command

    data_command.prepare(
        source,
        to,
        image_size=image_size,
        selection=data_command.selection_from(classes, class_seed, class_list, held_out),
        held_out_from=held_out_from,
        labels=labels,
        max_unreadable=max_unreadable,
        licence=licence,
        workers=workers,
        quiet=quiet,
    )


@data_app.command()
def show(folder: Folder) -> None:
    """Print the card of the set in FOLDER."""
    from attnbench.commands import data as data_command

    data_command.show(folder)


@data_app.command()
def verify(folder: Folder, quiet: Quiet = False) -> None:
    """Check every file of a set against its checksum.

    Exit code 1 where one differs.
    """
    from attnbench.commands import data as data_command

    raise typer.Exit(data_command.verify(folder, quiet=quiet))
