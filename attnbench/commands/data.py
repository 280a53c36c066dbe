"""What `attnbench data` does: make a training set out of a folder or archive, show its card, check it."""

from __future__ import annotations

import functools
from pathlib import Path

import typer

from attnbench import console
from attnbench.data.card import Card, read_card
from attnbench.data.card import verify as faults_of
from attnbench.data.preparing import prepare as make
from attnbench.data.request import PreparationRequest
from attnbench.data.selection import Selection, read_class_list
from attnbench.devices import available_cores
from attnbench.errors import UserInputError
from attnbench.report.tables import Table
from attnbench.stages.interrupts import keeping

SHOWN_CLASSES = 20
SHOWN_FILES = 5


def prepare(
    source: Path,
    to: Path,
    *,
    image_size: int,
    selection: Selection,
    held_out_from: Path | None,
    labels: Path | None,
    max_unreadable: float,
    licence: str | None,
    workers: int | None,
    quiet: bool,
) -> None:
    """Make a training set, print its card and how a suite names it."""
    request = PreparationRequest(
        source=source,
        folder=to,
        image_size=image_size,
        selection=selection,
        held_out_from=held_out_from,
        labels=labels,
        max_unreadable=max_unreadable,
        workers=workers or available_cores(),
        **({} if licence is None else {"licence": licence}),
    )
    with (
        keeping(lambda: _what_is_prepared(to)),
        console.progress_bar("prepare", quiet=quiet) as progress,
    ):
        card = make(request, progress, functools.cache(console.print_notice))  # each notice once
    console.print_table(_summary(to, card))
    typer.echo(f"use it with: data: {{name: prepared, path: {to.absolute()}, image_size: {image_size}}}")


def _what_is_prepared(folder: Path) -> str:
    shards = len(list(folder.glob("*/images-*.npy")))
    if not shards:
        return "no shard is finished; run the same command again"
    return f"finished shards: {shards}, in {folder}; the same command goes on after them"


def show(folder: Path) -> None:
    """Print the card of a set."""
    console.print_table(_summary(folder, read_card(folder)))


def verify(folder: Path, *, quiet: bool) -> int:
    """Print every file that differs from its checksum; return the exit code."""
    with console.progress_bar("verify", quiet=quiet) as progress:
        faults = faults_of(folder, progress)
    if faults:
        for fault in faults:
            typer.echo(fault)
        typer.echo(f"{folder}: {len(faults)} damaged; remove the folder and prepare the set again", err=True)
        return 1
    typer.echo(f"{folder}: all {len(list(read_card(folder).files()))} files are as the card says")
    return 0


def selection_from(
    classes: int | None, class_seed: int | None, class_list: Path | None, held_out: str | None
) -> Selection:
    """Return which classes and held-out images the options choose; raises UserInputError."""
    if classes is not None and class_list is not None:
        raise UserInputError("--classes draws classes and --class-list names them; give one of the two")
    if classes is None and class_seed is not None:
        raise UserInputError("--class-seed draws nothing without --classes; say how many classes to draw")
    listed = None if class_list is None else read_class_list(class_list)
    return Selection(count=classes, seed=class_seed or 0, listed=listed, held_out=held_out)


def _summary(folder: Path, card: Card) -> Table:
    """Tell what a card says, checksums aside."""
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
    if changes := card.changes():
        rows.append(("converted", "; ".join(f"{count} with {what}" for what, count in changes.items())))
    if card.unused_parts:
        rows.append(("not used", ", ".join(f"{n} of {part}" for part, n in card.unused_parts.items())))
    if card.num_outside:
        rows.append(("no images, or in no class", f"{card.num_outside}, such as {', '.join(card.outside)}"))
    versions = f"attnbench {card.attnbench}, pillow {card.pillow}, numpy {card.numpy}"
    rows.append(("made with", versions))
    return console.listing(f"prepared training set {folder}", ("what", "value"), rows)
