"""Finished trainings of a store that others can go on from: those that differ in having fewer steps.

Order, noise and learning rate are functions of (seed, step): the weights after 100 of 400 steps are those of
a training of 100, bit for bit. A taught training goes on from none, as its teacher may be another by then.
"""

from __future__ import annotations

import functools
from pathlib import Path

from attnbench.errors import StorageError
from attnbench.specs import Case
from attnbench.storage.names import CHECKPOINT, DONE, PREVIOUS_CHECKPOINT
from attnbench.storage.store import read_output


def with_steps(case: Case, steps: int) -> Case:
    """Return the case trained for another number of steps."""
    train = case.train.once(("steps", steps), lambda: case.train.model_copy(update={"steps": steps}))
    return case.model_copy(update={"train": train})


def of_any_length(case: Case) -> str:
    """Return what trainings have in common that differ in their number of steps alone."""
    return case.once("of any length", lambda: with_steps(case, 0).key("train"))


class FinishedTrainings(dict[str, int]):
    """Steps of trainings by their keys."""

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many steps there are among them, most first: few numbers, however many trainings."""
        return tuple(sorted(set(self.values()), reverse=True))


def finished_trainings(store: Path) -> FinishedTrainings:
    """Return the steps of every finished training in a store that can be gone on from, by its key."""
    found = FinishedTrainings()
    for path in (store / "train").glob(f"*/{CHECKPOINT}"):
        try:
            output = read_output(path.parent)
        except StorageError:  # somebody else's, perhaps: whoever needs it is told
            continue
        steps = [int(m.value) for m in output.measurements if m.name == "steps"] if output else []
        if steps:
            found[path.parent.name] = steps[0]
    return found


def finished_shorter(case: Case, store: Path, finished: FinishedTrainings) -> Case | None:
    """Return the case of the longest finished training that differs from this one's in having fewer steps.

    `finished` is what `finished_trainings` found. None where the case's own is finished or has come to a
    checkpoint.
    """
    if case.train.teacher is not None:
        return None
    fewer = (steps for steps in finished.lengths if steps < case.train.steps)
    shorter = next((one for n in fewer if (one := with_steps(case, n)).key("train") in finished), None)
    return None if shorter is None or has_begun(case, store) else shorter


def has_begun(case: Case, store: Path) -> bool:
    """Tell whether a case's own training is finished or has a checkpoint, be it the one before."""
    folder = store / "train" / case.key("train")
    names = (DONE, CHECKPOINT, PREVIOUS_CHECKPOINT)
    return folder.exists() and any((folder / name).exists() for name in names)
