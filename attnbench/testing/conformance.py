"""The list of checks, and how a backend runs through it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from attnbench.contract import AttentionBackend
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.models.options import options_of, read_options
from attnbench.progress import Progress
from attnbench.testing import (
    declarations,
    divided_batch,
    numerics,
    plumbing,
    repeatability,
    scaling,
    shapes,
    symmetry,
)
from attnbench.testing.outcome import CheckFailedError, CheckResult, NotApplicableError, Status
from attnbench.testing.question import Check
from attnbench.testing.subject import Subject

CHECKS: tuple[Check, ...] = (
    *declarations.CHECKS,
    *shapes.CHECKS,
    *numerics.CHECKS,
    *repeatability.CHECKS,
    *scaling.CHECKS,
    *symmetry.CHECKS,
    *plumbing.CHECKS,
    *divided_batch.CHECKS,
)
_BY_NAME = {check.name: check for check in CHECKS}

Options = Mapping[str, Any]


def check_backend(
    record: AttentionBackend,
    options: Options | Sequence[Options] | None = None,
    *,
    only: Collection[str] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Run the kit over a backend, for pytest; arguments as in `run_checks`.

    Raises AssertionError listing every check that failed, or passed against its declaration.
    """
    __tracebackhide__ = True  # pytest shows the list, not this function
    bad = [result for result in run_checks(record, options, only=only, device=device) if result.bad]
    if bad:
        lines = "\n".join(f"  {r.name}: {r.status}: {r.detail}" for r in bad)
        raise AssertionError(f"backend {record.name!r} fails {len(bad)} conformance checks:\n{lines}")


def run_checks(
    record: AttentionBackend,
    options: Options | Sequence[Options] | None = None,
    *,
    only: Collection[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[CheckResult]:
    """Ask every check (or those in `only`) of a backend; one result per check, in the kit's order.

    `options` is one mapping or several; with several, a check passes when it passes with each of them.
    A failure the record expects is no failure; it says what the default options do, so that with other
    options a pass is no surprise. Raises UserInputError on options that do not validate and
    UnknownNameError on a check, in `only` or in the record's `expected_failures`, that does not exist.
    """
    for name in (*record.expected_failures, *(only or ())):
        if name not in _BY_NAME:
            raise UnknownNameError("check", name, _BY_NAME)
    mappings = [options or {}] if options is None or isinstance(options, Mapping) else list(options)
    target = torch.device(device)
    subjects = [Subject(record=record, options=options_of(record, m), device=target) for m in mappings]
    if not subjects:
        raise UserInputError("options is an empty list, so nothing would be checked; pass None for defaults")
    chosen = [check for check in CHECKS if only is None or check.name in only]
    results = []
    for number, check in enumerate(chosen):
        if progress is not None:
            progress(number, len(chosen), check.name)
        results.append(_expected(record, _ask_all(check, subjects), subjects))
    if progress is not None:
        progress(len(chosen), len(chosen), "")
    return results


def _ask_all(check: Check, subjects: Sequence[Subject]) -> CheckResult:
    """Ask with each set of options: the first failure counts, then a pass, then a skip."""
    results = []
    for subject in subjects:
        status, detail = _ask(check, subject)
        if len(subjects) > 1:
            detail = f"{subject.options.model_dump(exclude_defaults=True)}: {detail}"
        results.append(CheckResult(name=check.name, status=status, detail=detail))
    rank = {"failed": 0, "passed": 1, "skipped": 2}
    return min(results, key=lambda result: rank[result.status])


def _ask(check: Check, subject: Subject) -> tuple[Status, str]:
    try:
        return "passed", check.ask(subject)
    except NotApplicableError as reason:
        return "skipped", str(reason)
    except CheckFailedError as failure:
        return "failed", str(failure)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may raise anything
        message = " ".join(str(error).split())
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return "failed", f"{type(error).__name__}: {message}{where}"


def _expected(record: AttentionBackend, result: CheckResult, subjects: Sequence[Subject]) -> CheckResult:
    """Set a result against what the record says it expects."""
    reason = record.expected_failures.get(result.name)
    if reason is None:
        return result
    if result.status == "failed":
        detail = f"{reason} ({result.detail})"
        return CheckResult(name=result.name, status="expected-failure", detail=detail)
    default, _ = read_options(record, {})  # None where an option has no default
    if result.status == "passed" and any(subject.options == default for subject in subjects):
        detail = f"passes, although the record expects a failure ({reason}); remove it from expected_failures"
        return CheckResult(name=result.name, status="unexpected-pass", detail=detail)
    return result
