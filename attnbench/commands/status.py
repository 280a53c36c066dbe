"""What `attnbench status` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attnbench import console
from attnbench.errors import UserInputError
from attnbench.results import each_result, latest
from attnbench.storage.names import RESULTS, RUN, STORE


def status(run: str, overrides: Sequence[str], cases: Sequence[str], seeds: int | None, runs: Path) -> None:
    """Print how far every case of a run has come: as its record names them, or as the suite does."""
    from attnbench.running.status import State, statuses, submitted_tasks
    from attnbench.storage.run_folders import read_run_record, run_folder
    from attnbench.suite.choosing import choose_cases
    from attnbench.suite.loading import load_suite

    folder = run_folder(run, runs)
    record = None if overrides or cases or seeds is not None else read_run_record(folder / RUN)
    if record is not None:
        suite = choose_cases(load_suite(record.source, record.overrides, seeds=record.seeds), record.chosen)
        if {case.id for case in suite.cases} != set(record.case_ids):
            raise UserInputError(
                f"{record.source} or the code of its attentions has been changed since the run of {folder}; "
                "say with -o, --case and --seeds which cases you mean, or run the suite again"
            )
    else:
        suite = choose_cases(load_suite(run, overrides, seeds=seeds), cases)
        folder = runs / suite.name
    store = folder.absolute().parent / STORE
    written = folder / RESULTS  # not there before the first case of a first run has ended
    known = {one.case_id: one for one in latest(each_result(written))} if written.exists() else {}
    found = statuses(suite.cases, store, known, submitted_tasks(folder))
    counts = Counter(one.state for one in found)
    order: tuple[State, ...] = ("finished", "running", "failed", "skipped", "queued")
    summary = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
    rows = [(one.case.label, one.state, one.detail) for one in found]
    console.print_table(console.listing(f"{suite.name}: {summary}", ("case", "state", "what"), rows))
