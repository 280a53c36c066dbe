"""That every case of a suite is a measurement of its own, under a label of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from attnbench.problems import SET_BY_RECIPE, Problem
from attnbench.specs import Case, content_hash
from attnbench.suite.matrix import Axis, Draft
from attnbench.yaml_source import show_path, show_value

WORK: dict[Literal["train", "sample"], str] = {"train": "training", "sample": "sampling"}


def repetitions(pairs: Sequence[tuple[Draft, Case]]) -> Iterable[Problem]:
    """Yield the axis values that repeat another in content, or that would carry the same label."""
    contents: dict[str, Draft] = {}
    labels: dict[str, Draft] = {}
    for draft, case in pairs:
        same_content = contents.setdefault(_content(case), draft)
        same_label = labels.setdefault(case.label, draft)
        if same_content is not draft:
            yield _repeated(draft, same_content, "has the same content as {}; remove one of them")
        elif same_label is not draft:
            yield _repeated(draft, same_label, f"has the same label as {{}}: {case.label!r}; give it another")


def shared_measurements(pairs: Sequence[tuple[Draft, Case]]) -> Iterable[Problem]:
    """Yield settings that differ between cases which share the one training or sampling they are about."""
    for stage, work in WORK.items():
        firsts: dict[str, tuple[Draft, Case]] = {}
        for draft, case in pairs:
            first_draft, first = firsts.setdefault(case.key(stage), (draft, case))
            values, others = case.outside_key(stage), first.outside_key(stage)
            for name in (name for name in values if values[name] != others[name]):
                setting = (stage, name)
                written, here, there = draft.written(setting), values[name], others[name]
                if written == setting:  # not varied here: an exception sets it for the other case
                    written, here, there = first_draft.written(setting), there, here
                yield Problem(written, _shared(work, show_path(setting), show_value(here), show_value(there)))


def _shared(work: str, setting: str, here: str, there: str) -> str:
    return (
        f"{here} here, {there} in another case of the same {work}: {setting} changes no result, so one "
        f"{work} serves both cases, and both would show its times; give both one value, and compare times "
        f"in runs with a --runs folder each (-o {setting}=VALUE)"
    )


def _repeated(draft: Draft, other: Draft, message: str) -> Problem:
    differing: list[tuple[Axis, int, int]] = [
        (axis, index, earlier)
        for (axis, index), (_, earlier) in zip(draft.points, other.points, strict=True)
        if index != earlier
    ]
    axis, index, earlier = differing[0]
    return Problem((*axis.written, index), message.format(show_path((*axis.written, earlier))))


def _content(case: Case) -> str:
    """Return a hash of everything but names, labels and prose."""
    dumped = case.model_dump(mode="json", exclude={"suite", "question", "label", "axes", "exceptions"})
    if case.initial:
        del dumped["train"]["init_from"]  # the place of what `initial` is the content of
    if case.teacher is not None:  # likewise
        dumped["teacher"] = case.teacher.identity
        for name in ("model", "case", "label"):
            del dumped["train"]["teacher"][name]
    model = {key: value for key, value in dumped["model"].items() if key not in SET_BY_RECIPE}
    several = model["attention"] if isinstance(model["attention"], list) else [model["attention"]]
    for attention in several:
        attention["label"] = None
    return content_hash({**dumped, "model": model})
