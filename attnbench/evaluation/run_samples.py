"""Where the samples of a cell lie, found from the folder of a suite's run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from pydantic import ValidationError

from attnbench.errors import DataError, UnknownNameError
from attnbench.results import Result, latest, read_results
from attnbench.specs import Case

RESULTS, STORE, DONE = "results.jsonl", "store", "done.json"


def sample_folder(run_dir: Path, case: str | None) -> tuple[str, Path]:
    """Return the label of a run's cell and the folder of its samples.

    `case` is a label or an id; it may be None where the run has one cell. Raises UnknownNameError, and
    DataError where the choice is open or the samples are not there.
    """
    results = read_results(run_dir / RESULTS)
    chosen = _choose(run_dir, latest(results), case)
    store = run_dir.absolute().parent / STORE
    keys = _keys([result for result in results if result.case_id == chosen.case_id])
    for key in keys:
        folder = store / "sample" / key
        if (folder / DONE).is_file():
            return chosen.label, folder
    raise DataError(
        f"{run_dir}: the samples of {chosen.label!r} are not in {store}"
        f"{'' if store.is_dir() else ', which does not exist (it lies beside the run folder)'}; run the "
        "suite again, or name the folder or npz file with the images"
    )


def _choose(run_dir: Path, results: list[Result], case: str | None) -> Result:
    """Return the one cell that is meant; raises DataError naming the labels there are."""
    if not results:
        raise DataError(f"{run_dir / RESULTS} holds no result yet; run the suite first")
    found = results
    if case is not None:
        found = [result for result in results if case == result.case_id]
        found = found or [result for result in results if case == result.label]
    if not found:
        raise UnknownNameError("case", case or "", {result.label for result in results})
    if len(found) == 1:
        return found[0]
    if case is None:
        raise DataError(
            f"{run_dir} holds {len(found)} cells; choose one by its label: "
            f"{', '.join(dict.fromkeys(result.label for result in found))}"
        )
    ids = "; ".join(
        f"{result.case_id} (seed {result.case.get('seed')}, {result.created})" for result in found
    )
    raise DataError(f"{run_dir} holds {len(found)} cells of the label {case!r}; choose one by its id: {ids}")


def _keys(lines: list[Result]) -> list[str]:
    """Return the keys under which a cell's samples may lie: as its results say, and as computed now."""
    artefacts = [Path(path) for line in lines for path in line.artefacts.values()]
    keys = [path.parts[1] for path in artefacts if path.parts[0] == "sample" and len(path.parts) > 2]
    with contextlib.suppress(ValidationError):  # settings of another version: what the results say is left
        keys.append(Case.model_validate_json(json.dumps(lines[-1].case)).key("sample"))
    return list(dict.fromkeys(keys))
