"""Checks of what a record says about itself: its texts, its options, and whether `supports` is honest."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

import torch
from pydantic import BaseModel

from attnbench.contract import AttentionSite
from attnbench.testing.outcome import CheckFailedError, require
from attnbench.testing.question import check
from attnbench.testing.subject import ODD, SQUARE, TALL, WIDE, WIDTHS, Subject, call, site_of


@check("documentation")
def documentation(subject: Subject) -> str:
    """Summary and source say something, and every option is described."""
    record = subject.record
    for name in ("summary", "source"):
        require(bool(getattr(record, name).strip()), f"{name} is empty; say it in a few words")
    described = _attribute_docstrings(record.options)
    silent = [
        name
        for name, field in record.options.model_fields.items()
        if not (field.description or described.get(name, "")).strip()
    ]
    require(
        not silent,
        f"options without a description: {', '.join(silent)}; put a docstring below each field of "
        f"{record.options.__name__}, or Field(description=...)",
    )
    return f"{len(record.options.model_fields)} options described"


def _attribute_docstrings(options: type[BaseModel]) -> dict[str, str]:
    """Return the strings that stand right below the fields of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(options.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # no source: only field descriptions count
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if is_field and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = str(text.value.value)  # type: ignore[attr-defined]
    return found


@check("supports")
def supports(subject: Subject) -> str:
    """`supports` returns None or a reason, never raises, and what it calls supported builds and runs."""
    supported, refusals = 0, []
    for grid in dict.fromkeys((*SQUARE, *WIDE, *TALL, *ODD)):
        for dim, num_heads in WIDTHS[:4]:
            site = site_of(dim, num_heads, grid)
            reason = _answer(subject, site)
            if reason is None:
                supported += 1
                _must_run(subject, site)
            else:
                refusals.append(reason)
    require(
        supported > 0,
        f"refuses all {len(refusals)} sites tried on {subject.device}, so nothing can be checked: "
        f"{next(iter(refusals), '')!r}; check with options that fit small grids, or on another device",
    )
    return f"{supported} sites supported and built, {len(refusals)} refused with a reason"


def _answer(subject: Subject, site: AttentionSite) -> str | None:
    try:
        reason = subject.record.supports(site, subject.options, torch.float32, subject.device)
    except Exception as error:
        raise CheckFailedError(
            f"supports raised {type(error).__name__}: {error} at {_where(site)}; return the reason instead"
        ) from error
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise CheckFailedError(
            f"supports returned {reason!r} at {_where(site)}; allowed: None, or the reason as a string"
        )
    return reason


def _must_run(subject: Subject, site: AttentionSite) -> None:
    try:
        with torch.no_grad():
            call(subject.module(site), subject.batch(site, 1), site)
    except Exception as error:
        raise CheckFailedError(
            f"supports says yes to {_where(site)}, but there the module raises {type(error).__name__}: "
            f"{error}; make supports return the reason"
        ) from error


def _where(site: AttentionSite) -> str:
    return f"grid {site.grid}, dim {site.dim}, {site.num_heads} heads"


CHECKS = (documentation, supports)
