"""Finding a case again in the folder of a suite's run, for everything that uses what it left."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.results import (
    Record,
    Result,
    checked_record,
    each_result,
    latest,
    read_results,
    result_of,
    with_checksum,
)
from attnbench.specs import Case
from attnbench.storage.atomic import atomic_write
from attnbench.storage.names import DAMAGED_RESULTS, RESULTS, RUN, STORE


class RunRecord(Record):
    """What one `attnbench run` was asked for; the report of its folder is of these cases, in this order."""

    suite: str
    question: str = ""
    source: str
    """The suite as it was named: a shipped one's name, or the absolute path of a file."""
    overrides: tuple[str, ...] = ()
    """Relative paths in them made absolute."""
    seeds: int | None = None
    """What `--seeds` said."""
    chosen: tuple[str, ...] = ()
    """What `--case` said; empty: every case."""
    device: str = "auto"
    """What `--device` said."""
    case_ids: tuple[str, ...]


_OF_A_DECODER = ("decode_time_s", "denoise_images_per_s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder as reports and comparisons read it: one result per case."""

    folder: Path
    suite: str
    question: str
    results: tuple[Result, ...]
    record: RunRecord | None
    """None in the folders of earlier versions: then every case in results.jsonl counts."""


def read_run(name: str | Path, runs: Path) -> Run:
    """Read a run: a folder, or a suite's name below the runs folder.

    Of several results of one case the last counts; cases that the last `attnbench run` was not asked for (of
    other overrides, say) are left out. Raises UserInputError where there is nothing to read.
    """
    folder = run_folder(name, runs)
    results = latest(each_result(folder / RESULTS))
    record = read_run_record(folder / RUN)
    if record is not None:
        by_id = {result.case_id: result for result in results}
        results = [by_id[case_id] for case_id in record.case_ids if case_id in by_id]
        if by_id and not results:
            raise UserInputError(
                f"{folder / RESULTS} holds no result of the cases that {RUN} names; run the suite again, "
                f"which computes nothing that is finished, or remove {RUN}: then every case there counts"
            )
    if not results:
        raise UserInputError(f"{folder / RESULTS} holds no results yet; run the suite first")
    return Run(
        folder=folder,
        suite=record.suite if record else results[0].suite,
        question=record.question if record else str(results[0].case.get("question", "")),
        results=tuple(map(_without_decoding, results)),
        record=record,
    )


def _without_decoding(result: Result) -> Result:
    """Return the result of a model on pixels without what earlier versions said of a decoder it has not."""
    if result.case.get("model", {}).get("input") != "pixel":
        return result
    kept = [one for one in result.measurements if one.name not in _OF_A_DECODER]
    return result.model_copy(update={"measurements": kept})


def write_run_record(folder: Path, record: RunRecord) -> None:
    """Keep what a run was asked for beside its results; raises StorageError."""
    atomic_write(folder / RUN, with_checksum(record))  # no place in the checksum: run folders are copied


def read_run_record(path: Path) -> RunRecord | None:
    """Return what a run was asked for, None where nothing says so; raises UserInputError."""
    if not path.exists():
        return None
    try:
        return checked_record(path.read_bytes(), RunRecord)
    except (OSError, ValueError) as error:
        raise UserInputError(
            f"{path}: not what was written: {error}; run the suite again, which computes nothing that is "
            f"finished, or remove the file: then every case in {RESULTS} counts"
        ) from error


def run_folder(name: str | Path, runs: Path) -> Path:
    """Return the folder of a run: a folder as it stands, or a suite's name below the runs folder.

    A folder of that name without results, beside a run of that name, is not meant.
    """
    here, below = Path(name), runs / name
    if here.is_dir() and not (below / RESULTS).is_file():
        return here
    return here if (here / RESULTS).is_file() else below


def store_of(run_dir: Path) -> Path:
    """Return the store beside a run folder, where the stages keep their files."""
    return run_dir.absolute().parent / STORE


def set_damaged_aside(run_dir: Path) -> str:
    """Move the damaged lines of a run's results into a file of their own; return what the user must be told.

    Whoever calls it writes what is finished once more. An empty string where there is no such line. Raises
    StorageError.
    """
    path, aside = run_dir / RESULTS, run_dir / DAMAGED_RESULTS
    if not path.exists():
        return ""
    *lines, unfinished = path.read_bytes().split(b"\n")
    damaged = [number for number, line in enumerate(lines) if line.strip() and _is_damaged(line)]
    if not damaged:
        return ""
    before = aside.read_bytes() if aside.exists() else b""
    atomic_write(aside, before + b"".join(lines[number] + b"\n" for number in damaged))
    kept = [line + b"\n" for number, line in enumerate(lines) if number not in damaged]
    atomic_write(path, b"".join(kept) + unfinished)
    return (
        f"{path}: damaged lines ({', '.join(str(number + 1) for number in damaged)}) were moved to "
        f"{aside.name}; what is finished is written there once more"
    )


def _is_damaged(line: bytes) -> bool:
    try:
        result_of(line)
    except UserInputError:  # of another version
        return False
    except ValueError:
        return True
    return False


def choose_result(run_dir: Path, wanted: str | None = None) -> Result:
    """Return the result of the case with that label or id; None: of the only case.

    Raises UserInputError when there is no run, no result, no such case, or more than one.
    """
    if not (run_dir / RESULTS).is_file():
        raise UserInputError(
            f"{run_dir} is not the folder of a run: {RESULTS} is missing; name one such as runs/quick, which "
            "`attnbench run` writes"
        )
    results = latest(read_results(run_dir / RESULTS))
    if not results:
        raise UserInputError(f"{run_dir / RESULTS} holds no results yet; run the suite first")
    found = [r for r in results if wanted is None or wanted in (r.label, r.case_id)]
    if not found:
        raise UnknownNameError(f"case of {run_dir}", wanted or "", [r.label for r in results])
    if len(found) > 1:
        found = _of_the_last_run(run_dir, found)
    if len(found) > 1:
        asked = "" if wanted is None else f" called {wanted!r} (its suite has been changed in between)"
        raise UserInputError(f"{run_dir} has {len(found)} cases{asked}; choose one: {_listed(found)}")
    return found[0]


def _of_the_last_run(run_dir: Path, found: list[Result]) -> list[Result]:
    """Return those that the last run was asked for, as its report shows them; all where there are none."""
    with suppress(UserInputError):  # what is damaged says nothing
        record = read_run_record(run_dir / RUN)
        return [r for r in found if record is not None and r.case_id in record.case_ids] or found
    return found


def case_of(run_dir: Path, result: Result) -> Case:
    """Return the settings of a result; raises UserInputError where another attnbench wrote them."""
    try:
        return Case.model_validate_json(json.dumps(result.case))
    except ValidationError as error:
        raise UserInputError(
            f"{run_dir / RESULTS}: the settings of case {result.label!r} are of another attnbench "
            f"({error.errors()[0]['msg']}); run the suite again"
        ) from error


def _listed(results: list[Result]) -> str:
    """Return --case arguments that are unambiguous: labels, or ids where a label stands for several."""
    labels = [r.label for r in results]
    return ", ".join(
        f"--case {r.case_id} ({r.label}, {r.created})" if labels.count(r.label) > 1 else f"--case {r.label!r}"
        for r in results
    )
