"""What `attnbench store` prints: every folder of a store with its size, state, and the runs that name it."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.console.listing import Listing, listing
from attnbench.storage.inventory import Inventory, StoredFolder
from attnbench.storage.store import EVERY_STAGE


def store_listing(inventory: Inventory, removable: Sequence[StoredFolder]) -> Listing:
    """Return every folder, the largest of a stage first; below them the sums by stage and by run."""
    ordered = sorted(inventory.folders, key=lambda folder: (_order(folder.stage), -folder.size_bytes))
    rows = [
        (folder.stage, folder.path.name, in_bytes(folder.size_bytes), _state(folder), ", ".join(folder.runs))
        for folder in ordered
    ]
    columns = ("stage", "folder", "size", "state", "named by the results of")
    notes = [*_sums(inventory), "", _pruned(removable), *map(_unclear, inventory.unclear)]
    return listing(f"store {inventory.store}", columns, rows, notes, numeric=("size",))


def prune_listing(removable: Sequence[StoredFolder], title: str) -> Listing:
    """Return what is, or was, removed."""
    rows = [
        (folder.stage, folder.path.name, in_bytes(folder.size_bytes), _state(folder)) for folder in removable
    ]
    return listing(title, ("stage", "folder", "size", "state"), rows, numeric=("size",))


def in_bytes(size: int) -> str:
    """Return a size in the unit a person would choose.

    >>> in_bytes(812), in_bytes(20_000), in_bytes(3 << 20), in_bytes(5 << 30)
    ('812 B', '19.5 KiB', '3.0 MiB', '5.0 GiB')
    """
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _sums(inventory: Inventory) -> list[str]:
    stages = dict.fromkeys(sorted((folder.stage for folder in inventory.folders), key=_order))
    lines = [f"{stage}: {_sum([f for f in inventory.folders if f.stage == stage])}" for stage in stages]
    runs = dict.fromkeys(run for folder in inventory.folders for run in folder.runs)
    for run in runs:
        of_run = [folder for folder in inventory.folders if run in folder.runs]
        alone = [folder for folder in of_run if folder.runs == (run,)]
        lines.append(f"run {run}: {_sum(of_run)}; {in_bytes(_size(alone))} of it no other run names")
    return [*lines, f"all: {_sum(inventory.folders)}"]


def _pruned(removable: Sequence[StoredFolder]) -> str:
    if not removable:
        return "`attnbench store prune` would remove nothing"
    return f"`attnbench store prune` would remove {_sum(removable)}"


def _unclear(reason: str) -> str:
    return f"warning: nothing can be pruned, since it is unclear what a run names: {reason}"


def _sum(folders: Sequence[StoredFolder]) -> str:
    return f"{len(folders)} folder{'' if len(folders) == 1 else 's'}, {in_bytes(_size(folders))}"


def _size(folders: Sequence[StoredFolder]) -> int:
    return sum(folder.size_bytes for folder in folders)


def _order(stage: str) -> tuple[int, str]:
    return ([*EVERY_STAGE, stage].index(stage), stage)


def _state(folder: StoredFolder) -> str:
    if folder.held:
        return "being worked on"
    if folder.stage not in EVERY_STAGE:
        return "kept for all"
    if not folder.finished:
        return "unfinished"
    return "of an unfinished case" if folder.begun and not folder.runs else "finished"
