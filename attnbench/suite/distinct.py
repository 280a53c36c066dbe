"""That every case of a suite is a measurement of its own, under a label of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from attnbench.problems import Problem
from attnbench.specs import Case, canonical
from attnbench.suite.matrix import Axis, Draft
from attnbench.yaml_source import show_path, show_value

WORK: dict[Literal["train", "sample"], str] = {"train": "training", "sample": "sampling"}


def repetitions(pairs: Sequence[tuple[Draft, Case]]) -> Iterable[Problem]:
    """Yield the axis values that repeat another in content, or that would carry the same label."""
    contents: dict[tuple[str, ...], Draft] = {}
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
            if getattr(case, stage) is getattr(first, stage):
                continue
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


def _content(case: Case) -> tuple[str, ...]:
    """Return everything but names, labels and prose."""
    train = case.train.text()
    if case.initial or case.teacher is not None:
        settings = case.train.model_dump(mode="json")
        if case.initial:
            del settings["init_from"]  # the place of what `initial` is the content of
        for name in ("model", "case", "label") if case.teacher is not None else ():  # likewise
            del settings["teacher"][name]
        train = canonical(settings)
    teacher = "" if case.teacher is None else case.teacher.identity
    sections = (case.data, case.sample, case.evaluate, case.profile, case.diagnose)
    texts = ("" if section is None else section.text() for section in sections)
    model, code = case.model.content_text(), canonical(case.code)
    return (model, code, str(case.seed), case.initial, teacher, train, *texts)
