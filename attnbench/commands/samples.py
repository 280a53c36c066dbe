"""`attnbench samples export`: a finished case's images as PNG files or as one npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from attnbench.commands.targets import check_target
from attnbench.data import class_names
from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.run_samples import sample_folder
from attnbench.results import Result
from attnbench.specs import UserImages
from attnbench.stages.interrupts import keeping
from attnbench.storage.run_folders import case_of, store_of
from attnbench.storage.store import read_output


def export(
    run_dir: Path, *, npz: Path | None, png: Path | None, label: str | None, count: int | None
) -> None:
    """Export one case's samples and say what was written; raises UserInputError or DataError."""
    from attnbench.stages.sampling.export import write_npz, write_pngs

    if npz is None and png is None:
        raise UserInputError("nothing to export; add --npz FILE, --png FOLDER or both")
    result, folder = sample_folder(run_dir, label)
    count = _checked(count, available(folder, result), result.label)
    if npz is not None:
        check_target(npz, "--npz")
        names, fault = class_names_of(run_dir, result)
        with keeping(f"{npz} is not written; run the same command again"):
            repeated = write_npz(folder, npz, count, names)
        note = "; grey images: their channel three times, as ADM's evaluator needs RGB" if repeated else ""
        called = (
            f"what these are called (class_names){note}" if names else f"without class_names: {fault}{note}"
        )
        typer.echo(f"{npz}: {count} images of {result.label} (arr_0), their classes (arr_1), {called}")
    if png is not None:
        with keeping(f"pictures that were written stay in {png}; the same command writes the others"):
            written = write_pngs(folder, png, count)
        typer.echo(f"{png}: {count} images of {result.label}, {written} of them new")


def class_names_of(run_dir: Path, result: Result) -> tuple[Sequence[str], str]:
    """Return what the classes were called when the stage `prepare` read the data, or nothing and why.

    A user's folders may be others by now, so that they are not asked.
    """
    try:
        case = case_of(run_dir, result)
    except UserInputError as error:
        return (), str(error)
    prepared = read_output(store_of(run_dir) / "prepare" / case.key("prepare"))
    if prepared is not None and prepared.class_names:
        return prepared.class_names, ""
    if not isinstance(case.data, UserImages):
        return class_names(case.data), ""
    return (), "the attnbench that made this run did not note them"


def available(folder: Path, result: Result) -> int:
    """Return how many samples a finished stage has."""
    output = read_output(folder)
    counts = [m.n for m in output.measurements if m.name == "sample_time_s"] if output else []
    if not counts or counts[0] is None:
        raise DataError(
            f"{folder} does not say how many samples of {result.label} it has; run the suite again"
        )
    return counts[0]


def _checked(count: int | None, most: int, label: str) -> int:
    if count is None:
        return most
    if not 1 <= count <= most:
        raise UserInputError(f"--count: {label} has {most} samples, got {count}; take 1 to {most}")
    return count
