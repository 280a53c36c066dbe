"""What `attnbench store list` and `prune` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from attnbench import console
from attnbench.console.store_view import in_bytes, prune_listing, store_listing
from attnbench.errors import UserInputError
from attnbench.stages.interrupts import keeping
from attnbench.storage.inventory import removable, remove, require_clear, take_inventory


def print_list(runs: Path, elsewhere: Sequence[Path]) -> None:
    """Print what lies in the store below a runs folder."""
    inventory = take_inventory(runs, elsewhere)
    gone = [] if inventory.unclear else removable(inventory)
    console.print_table(store_listing(inventory, gone))


def prune(
    runs: Path, elsewhere: Sequence[Path], *, unfinished: bool, features: bool, dry_run: bool, yes: bool
) -> None:
    """Remove what no result names, after saying what it is and asking.

    Raises UserInputError where it is unclear what a run names, a run is going on, or nobody agreed.
    """
    inventory = require_clear(take_inventory(runs, elsewhere))
    choose = partial(removable, unfinished=unfinished, features=features)
    found = choose(inventory)
    if not found:
        kept = sum(folder.size_bytes for folder in removable(inventory, unfinished=True, features=True))
        more = f"; {in_bytes(kept)} more with --unfinished --features" if kept else ""
        typer.echo(f"{inventory.store}: nothing to remove: every stage is named by a result{more}")
        return
    size = in_bytes(sum(folder.size_bytes for folder in found))
    console.print_table(prune_listing(found, f"no result of {_runs(inventory.runs)} names these ({size})"))
    if dry_run:
        typer.echo("nothing was removed (--dry-run)")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserInputError("nothing is removed without consent: add --yes, or --dry-run to look only")
        typer.confirm(f"Remove {len(found)} folders, {size}?", abort=True)
    again = partial(take_inventory, runs, elsewhere)
    with keeping("some of these folders are removed; run the same command again for the others"):
        removed = remove(inventory, choose, again, console.print_notice)
    typer.echo(f"removed {len(removed)} folders, {in_bytes(sum(folder.size_bytes for folder in removed))}")


def _runs(run_dirs: Sequence[Path]) -> str:
    return ", ".join(path.name for path in run_dirs) or "any run (there is none)"
