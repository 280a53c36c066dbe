"""What `attnbench run`, `plan`, `validate` and `report` do with a suite or its run.

Each imports what it needs itself: a suite is checked in half the time that the models take to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from attnbench import console
from attnbench.running.plan import warnings
from attnbench.stages.latents.model_space import assumption
from attnbench.storage.names import STORE
from attnbench.storage.run_folders import read_run
from attnbench.suite.loading import load_suite


def run(
    suite: str,
    overrides: Sequence[str],
    runs: Path,
    *,
    device: str,
    inline: bool,
    processes: int,
    quiet: bool,
) -> int:
    """Run a suite, print its comparison and where the report is; return the exit code."""
    from attnbench.running.executors import run_in_process, run_inline, take_over_launcher
    from attnbench.running.runner import run as run_cases

    loaded = load_suite(suite, overrides)
    taken = take_over_launcher(processes)
    if taken is None:
        return 0  # another copy, started by torchrun beside this one, does the work
    with console.run_listener(len(loaded.cases), quiet=quiet) as listener:
        outcome = run_cases(
            loaded,
            runs,
            device=device,
            executor=partial(run_inline if inline else run_in_process, processes=taken),
            listener=listener,
        )
    console.print_comparison(outcome.results)
    typer.echo(f"report: {outcome.report.html}\n        {outcome.report.markdown}")
    return outcome.exit_code


def plan(suite: str, overrides: Sequence[str], runs: Path) -> None:
    """Print what a suite would take, and what it lacks."""
    from attnbench.running.plan import plan as plan_cases

    loaded, store = load_suite(suite, overrides), runs.absolute() / STORE
    planned = plan_cases(loaded.cases, store)
    console.print_table(console.plan_listing(loaded, planned, warnings(loaded, store)))


def validate(suite: str, overrides: Sequence[str], runs: Path) -> None:
    """Print that a suite is valid and how many cases it has; warnings go to stderr."""
    loaded = load_suite(suite, overrides)
    for line in warnings(loaded, runs.absolute() / STORE):
        console.print_notice(f"warning: {line}")
    typer.echo(f"{loaded.name}: valid, {len(loaded.cases)} cases")
    for assumed in dict.fromkeys(filter(None, map(assumption, loaded.cases))):
        typer.echo(f"note: {assumed}")


def report(run: str, runs: Path) -> None:
    """Write the report of a run again from its results alone."""
    from attnbench.report import write_report

    read = read_run(run, runs)
    paths = write_report(read.folder, read.results, title=read.suite, question=read.question)
    console.print_comparison(read.results)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")
