"""What lies in a store, how much of the disk it takes, and which results name it; removing what none does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserInputError
from attnbench.results import each_result
from attnbench.storage.atomic import storage_errors
from attnbench.storage.claims import claims, keys_of, teacher_keys_of
from attnbench.storage.locks import alone_at_once, is_held
from attnbench.storage.names import CLAIM, CLAIMS, DAMAGED_RESULTS, DONE, FEATURES, LOCK, RESULTS, RUN, STORE
from attnbench.storage.run_folders import case_of
from attnbench.storage.store import EVERY_STAGE, read_output


@dataclass(frozen=True, kw_only=True)
class StoredFolder:
    """One folder of a store (or file): a stage of a case, or what is kept for many of them."""

    stage: str
    path: Path
    size_bytes: int
    """The sizes of its files."""
    finished: bool
    """Of a stage; what is no stage counts as finished."""
    begun: bool
    """A case that a run has begun, and not finished, is made of it."""
    held: bool
    """A process works in it at this moment."""
    runs: tuple[str, ...]
    """Runs whose results name it."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything in a store."""

    store: Path
    runs: tuple[Path, ...]
    """The run folders whose results were read."""
    folders: tuple[StoredFolder, ...]
    unclear: tuple[str, ...]
    """Why nobody can tell what some runs name, one sentence a run."""

    @property
    def size_bytes(self) -> int:
        """Of all folders."""
        return sum(folder.size_bytes for folder in self.folders)


def take_inventory(runs: Path, elsewhere: Sequence[Path] = ()) -> Inventory:
    """Look through the store below a runs folder, and the results of every run there and `elsewhere`.

    Raises UserInputError where there is no store, or a folder elsewhere is not a run's.
    """
    store = runs.absolute() / STORE
    if not store.is_dir():
        raise UserInputError(f"{runs} has no store; name the folder that runs were kept in with --runs")
    for folder in elsewhere:
        if not (folder / RESULTS).is_file():
            raise UserInputError(
                f"{folder} is not the folder of a run: {RESULTS} is missing; name one that is"
            )
    beside, lost = _runs_beside(runs.absolute(), store)
    run_dirs = (*beside, *elsewhere)
    named, unclear = _named(run_dirs, runs.absolute())
    begun = _begun(store)
    folders = []
    for stage, path in _folders(store):
        place = (stage, path.name)
        folders.append(
            StoredFolder(
                stage=stage,
                path=path,
                size_bytes=_size_bytes(path),
                finished=stage not in EVERY_STAGE or read_output(path) is not None,
                begun=place in begun,
                held=is_held(path),
                runs=tuple(named.get(place, ())),
            )
        )
    return Inventory(store=store, runs=run_dirs, folders=tuple(folders), unclear=(*lost, *unclear))


def require_clear(inventory: Inventory) -> Inventory:
    """Return an inventory by which stages can be removed; raises UserInputError where a run is unclear."""
    if inventory.unclear:
        raise UserInputError(
            "nothing was removed, since it is unclear what a run names: "
            + "; ".join(inventory.unclear)
            + "; or remove that run's folder, if its results are not needed"
        )
    return inventory


def removable(
    inventory: Inventory, *, unfinished: bool = False, features: bool = False
) -> list[StoredFolder]:
    """Return the stages that no result names and nobody works on.

    What killed runs have left, which the same command would go on from, is among them with `unfinished` only;
    features of images, which are computed again when they are asked for, with `features`.
    """
    found = []
    for folder in inventory.folders:
        if folder.stage == FEATURES:
            wanted = features
        else:
            wanted = folder.stage in EVERY_STAGE and not folder.runs
            wanted = wanted and (unfinished or (folder.finished and not folder.begun))
        if wanted and not folder.held:
            found.append(folder)
    return found


def remove(
    inventory: Inventory,
    choose: Callable[[Inventory], Sequence[StoredFolder]],
    again: Callable[[], Inventory],
    tell: Callable[[str], None],
) -> list[StoredFolder]:
    """Remove what `choose` finds in this inventory and in a new one, while no run can begin; return it.

    `again` takes the inventory anew. Raises UserInputError where a run works in the store, StorageError.
    """
    asked = {folder.path for folder in choose(inventory)}
    with alone_at_once(inventory.store, tell) as alone:
        if not alone:
            raise UserInputError(
                f"an attnbench command works in {inventory.store} at this moment; nothing was removed: prune "
                "when it has ended"
            )
        for lock in (*inventory.store.glob(f"*/{LOCK}"), *inventory.store.glob(f"*/*/{LOCK}")):
            if is_held(lock.parent):  # by a run of an earlier version, or an evaluation
                raise UserInputError(
                    f"a process works in {lock.parent} at this moment; nothing was removed: prune when it "
                    "has ended"
                )
        chosen = [folder for folder in choose(require_clear(again())) if folder.path in asked]
        for folder in chosen:
            with storage_errors(folder.path):
                if not folder.path.is_dir():
                    folder.path.unlink()
                    continue
                (folder.path / DONE).unlink(missing_ok=True)  # half of it is not to be taken for all
                shutil.rmtree(folder.path.resolve())
                if folder.path.is_symlink():  # somebody keeps large stages on another disk
                    folder.path.unlink()
        _forget_claims(inventory.store, chosen)
    return chosen


def _runs_beside(runs: Path, store: Path) -> tuple[list[Path], list[str]]:
    """Return the run folders beside a store, and of which of them nobody can tell what they name.

    Where a runs folder's store is a link, the runs beside what it leads to count, too.
    """
    found, lost = [], []
    for place in dict.fromkeys((runs, store.resolve().parent)):
        for path in sorted(place.iterdir()):
            is_run, reason = _looked_at(path)
            if is_run:
                found.append(path)
            elif reason and place == runs:  # elsewhere anything may lie
                lost.append(reason)
    return found, lost


def _looked_at(path: Path) -> tuple[bool, str]:
    """Tell whether a folder is a run's; else why it may have been one, or nothing."""
    try:
        if (path / RESULTS).exists():
            return True, ""
        left = (path / RUN).exists() or (path / DAMAGED_RESULTS).exists()
    except OSError as error:
        return False, f"{path} cannot be read: {error.strerror}; let this user read it"
    if path.is_symlink() and not path.exists():
        return False, f"{path} leads to {path.readlink()}, which is not there; bring it back"
    missing = f"{path / RESULTS} is missing; bring it back, or run the suite again"
    return False, missing if left else ""


def _forget_claims(store: Path, removed: Sequence[StoredFolder]) -> None:
    """Remove the notes on cases that lack a stage now: what is left of them would count as begun for ever."""
    gone = {(folder.stage, folder.path.name) for folder in removed}
    for claim in list(claims(store)):
        if gone & claim.places:
            (store / CLAIMS / claim.keys["evaluate"] / CLAIM).unlink(missing_ok=True)


def _named(run_dirs: Sequence[Path], runs: Path) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """Return the stages that results name, each with their runs; and why those of a run cannot be told."""
    named: dict[tuple[str, str], list[str]] = {}
    unclear = []
    for run_dir in run_dirs:
        title = run_dir.name if run_dir.parent == runs else str(run_dir)
        try:
            # every line counts: those of one case may ask for different diagnoses
            results = {(r.case_id, str(r.case.get("diagnose"))): r for r in each_result(run_dir / RESULTS)}
            cases = [case_of(run_dir, result) for result in results.values()]
        except UserInputError as error:
            unclear.append(str(error))
            continue
        needed = [stages for case in cases for stages in (keys_of(case), teacher_keys_of(case))]
        for place in dict.fromkeys(place for stages in needed for place in stages.items()):
            named.setdefault(place, []).append(title)
    return named, unclear


def _begun(store: Path) -> set[tuple[str, str]]:
    """Return the stages of every case that was begun and not finished: not evaluated, or not diagnosed."""
    return {
        place
        for claim in claims(store)
        if any(read_output(store / stage / key) is None for stage, key in claim.keys.items())
        for place in claim.places
    }


def _folders(store: Path) -> Iterator[tuple[str, Path]]:
    """Yield every folder or file of a store with its stage, or what else it is, but not the locks."""
    for group in sorted(path for path in store.iterdir() if path.is_dir() and path.name != CLAIMS):
        for path in sorted(path for path in group.iterdir() if path.name != LOCK):
            yield group.name, path


def _size_bytes(folder: Path) -> int:
    """Return the sizes of the files in a folder; one that goes away meanwhile counts for nothing."""
    total = folder.lstat().st_size if folder.is_file() else 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total
