"""What `attnbench check` does: find the backends, run the conformance kit over them, print the results."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench import console
from attnbench.commands.targets import check_target
from attnbench.contract import AttentionBackend
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.plugins import registry
from attnbench.problems import json_object
from attnbench.progress import Progress
from attnbench.stages.interrupts import keeping
from attnbench.testing import CheckResult, run_checks

Report = list[tuple[str, list[CheckResult]]]


def check(names: Sequence[str], options: Sequence[str], json_file: Path | None, *, quiet: bool) -> int:
    """Check backends by name or import path (none named: all built-ins); return the exit code.

    Raises UserInputError on names, imports and options that cannot be used; nothing was checked then.
    """
    mappings = [json_object(text) for text in options] or None
    records = [record for name in names for record in find(name)] if names else built_ins()
    check_target(json_file, "--json")
    report: Report = []
    with (
        keeping(lambda: _what_is_checked(report, len(records))),
        console.progress_bar("check", quiet=quiet) as progress,
    ):
        for number, record in enumerate(records):
            tell = functools.partial(_tell, progress, f"{record.name} ({number + 1} of {len(records)})")
            report.append((record.name, run_checks(record, mappings, progress=tell)))
    print_report(report)
    if json_file is not None:
        rows = [
            {"backend": name, "options": mappings or [{}], "check": r.name, "status": r.status}
            | {"detail": r.detail}
            for name, results in report
            for r in results
        ]
        console.write_json(json_file, rows)
    return int(any(result.bad for _, results in report for result in results))


def _what_is_checked(report: Report, asked: int) -> str:
    """Print the checks of the backends that an interrupted run has finished; return what to say of them."""
    if report:
        print_report(report)
    return f"{len(report)} of {asked} backends are checked"


def _tell(progress: Progress, title: str, done: int, total: int, note: str) -> None:
    progress(done, total, f"{title}: {note}")


def built_ins() -> list[AttentionBackend]:
    """Return the records that come with attnbench."""
    return [p.record for p in registry().backends.values() if p.origin == "built-in"]


def find(name: str) -> list[AttentionBackend]:
    """Return the backend of that name, or what stands at `pkg.module:Object`.

    The object is a record, or a function (such as the hook) that yields records.
    """
    if ":" not in name:
        return [registry().backend(name)]
    found = _import(name)
    try:
        found = found() if callable(found) else found
        if isinstance(found, Iterator):
            found = list(found)  # a hook's body runs here
    except (Exception, SystemExit) as error:
        raise UserInputError(
            f"{name} gives no backends when called without arguments ({type(error).__name__}: {error}); "
            "name an AttentionBackend, or a function that yields them"
        ) from error
    records = [found] if isinstance(found, AttentionBackend) else found
    if isinstance(records, Iterable) and not isinstance(records, str | Mapping):
        records = list(records)
        if records and all(isinstance(record, AttentionBackend) for record in records):
            return records
    raise UserInputError(
        f"{name} is a {type(found).__name__}; name an AttentionBackend, or a function that yields them "
        "(attnbench_backends)"
    )


def _import(name: str) -> Any:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UserInputError(f"{name!r} is neither a backend's name nor of the form pkg.module:Object")
    if os.getcwd() not in sys.path:  # a script's sys.path lacks the folder it is called from
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserInputError(
            f"cannot import {module_name!r} of {name!r} ({type(error).__name__}: {error}); install the "
            "package, or call attnbench in the folder that holds the module"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"name in {module_name}", part, _candidates(found))
        found = getattr(found, part)
    return found


def _candidates(module: Any) -> list[str]:
    """Names in a module that may be meant: records and hooks."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, AttentionBackend) or name == "attnbench_backends"
    ]


def print_report(report: Report) -> None:
    """Print every row of one backend, or of several backends those that are not plain passes."""
    counts = Counter(result.status for _, results in report for result in results)
    total = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    columns: tuple[str, ...] = ("check", "status", "detail")
    notes: tuple[str, ...] = (total,)
    title = f"conformance of {report[0][0]}"
    rows: list[tuple[str, ...]] = [(r.name, r.status, r.detail) for _, results in report for r in results]
    if len(report) > 1:
        title, columns = "conformance", ("backend", *columns)
        rows = [row for name, results in report for row in _rows_of_one(name, results)]
        notes = (f"{len(report)} backends: {total}", "--json writes every check with its detail")
    console.print_table(console.listing(title, columns, rows, notes))


def _rows_of_one(name: str, results: list[CheckResult]) -> list[tuple[str, ...]]:
    """One row that counts a backend's passes, and one for everything else."""
    others = [(name, r.name, r.status, r.detail) for r in results if r.status != "passed"]
    return [(name, f"{len(results) - len(others)} of {len(results)} checks", "passed", ""), *others]
