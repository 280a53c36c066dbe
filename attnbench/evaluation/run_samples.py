"""Where the samples of a case lie, found from the folder of a suite's run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from attnbench.errors import DataError, UserInputError
from attnbench.results import Result, read_results
from attnbench.storage.names import DONE, RESULTS
from attnbench.storage.run_folders import case_of, choose_result, store_of


def sample_folder(run_dir: Path, case: str | None) -> tuple[Result, Path]:
    """Return the result of a run's case and the folder of its finished samples.

    `case` is a label or an id; None: the only case. Raises UserInputError where the choice is open, DataError
    where the samples are not there.
    """
    result = choose_result(run_dir, case)
    folder = finished_samples(run_dir, result)
    if folder is not None:
        return result, folder
    why = f" ({result.reason})" if result.reason else ""
    raise DataError(
        f"{run_dir}: no finished samples of {result.label!r} in {store_of(run_dir)}{why}; run the suite "
        "again, or name the folder or npz file with the images"
    )


def finished_samples(run_dir: Path, result: Result) -> Path | None:
    """Return the folder of a result's samples in the store beside its run, or None where there are none."""
    store = store_of(run_dir)
    if not store.is_dir():
        return None
    folders = (store / "sample" / key for key in _keys(run_dir, result))
    return next((folder for folder in folders if (folder / DONE).is_file()), None)


def _keys(run_dir: Path, result: Result) -> list[str]:
    """Return the keys under which a case's samples may lie: as its results say, and as computed now."""
    lines = [line for line in read_results(run_dir / RESULTS) if line.case_id == result.case_id]
    pictures = [Path(path) for line in lines for path in line.artefacts.values()]
    keys = [path.parts[1] for path in pictures if path.parts[0] == "sample" and len(path.parts) > 2]
    with contextlib.suppress(UserInputError):  # settings of another attnbench: what the results say is left
        keys.append(case_of(run_dir, result).key("sample"))
    return list(dict.fromkeys(keys))
