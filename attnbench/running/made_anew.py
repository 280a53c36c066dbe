"""Why a case that a run has finished before is computed again: what of it is another now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attnbench.errors import UserInputError
from attnbench.plugins import BUILT_IN, registry
from attnbench.results import each_result
from attnbench.specs import OUTSIDE_KEY, Case
from attnbench.storage.names import RESULTS, STORE
from attnbench.storage.store import FinishedStages

SHOWN = 3
"""Settings that a sentence names; the others are counted."""


def made_anew(cases: Sequence[Case], run_dir: Path) -> dict[str, list[str]]:
    """Return for each reason the labels of cases that the run has finished before and computes again.

    A case is known by its label. What was finished of another version of attnbench, and cannot be read, gives
    no reason; neither does a store that was emptied.
    """
    done = FinishedStages(run_dir.parent / STORE)
    unfinished = {case.label: case for case in cases if not done.has("evaluate", case.key("evaluate"))}
    reasons: dict[str, list[str]] = {}
    for label, before in _finished_before(run_dir / RESULTS, unfinished).items():
        differences = list(_differences(before, unfinished[label]))
        if differences:
            more = len(differences) - SHOWN
            shown = [*differences[:SHOWN], *([f"{more} more"] if more > 0 else [])]
            reasons.setdefault("computed again, since " + ", ".join(shown), []).append(label)
    return reasons


def _finished_before(results: Path, wanted: Mapping[str, Case]) -> dict[str, Case]:
    """Return the last finished case of each wanted label, as it was then."""
    found = {}
    if not wanted or not results.is_file():
        return {}
    try:
        for result in each_result(results):
            if result.label in wanted and result.status == "ok":
                found[result.label] = result.case
    except UserInputError:  # a damaged line, or another version's: whoever writes the results tells of it
        return {}
    cases = {}
    for label, written in found.items():
        try:
            cases[label] = Case.model_validate_json(json.dumps(written))
        except ValidationError:
            continue
    return cases


def _differences(before: Case, now: Case) -> Iterator[str]:
    """Yield what of the keys of a case's stages is another, its teacher included."""
    told = list(_own_differences(before, now))
    yield from told
    then, here = before.teacher, now.teacher
    if then is None or here is None or then.identity == here.identity:
        return
    theirs = []
    if then.case is not None and here.case is not None:
        theirs = list(_own_differences(then.case, here.case))
    if not theirs:
        yield "its teacher is another"
    yield from (f"of its teacher, {difference}" for difference in theirs if difference not in told)


def _own_differences(before: Case, now: Case) -> Iterator[str]:
    """Yield what of a case itself is another."""
    for name in sorted(now.code):
        if before.code.get(name, now.code[name]) != now.code[name]:
            yield f"the code of attention {name!r} has changed ({_provider(name)})"
    taught = [case.train.teacher is not None for case in (before, now)]
    if taught[0] != taught[1]:
        yield "it has a teacher (had none)" if taught[1] else "it has no teacher (had one)"
    old, new = (_settings(case, taught=all(taught)) for case in (before, now))
    for place in sorted(old.keys() | new.keys()):
        if old.get(place) != new.get(place):
            yield f"{place} is {_shown(new, place)} (was {_shown(old, place)})"
    if before.initial != now.initial:  # the weights; where they lie is in no key
        start, begun = (json.dumps(c.train.model_dump(mode="json")["init_from"]) for c in (now, before))
        others = f"train.init_from is {start} (was {begun})"
        yield others if start != begun else "the weights in train.init_from are others"


def _provider(name: str) -> str:
    provided = registry().backends.get(name)
    if provided is None or provided.origin == BUILT_IN:
        return "attnbench"
    return f"plugin {provided.plugin} of {provided.origin}"


def _settings(case: Case, *, taught: bool) -> dict[str, Any]:
    """Return what the keys of a case's stages are made of, by the name a suite gives it.

    Without what names a place, as the keys are, and, unless `taught`, without what is asked of a teacher.
    """
    kept: dict[str, Any] = {"model": case.model.content(), "seed": case.seed}
    for name in ("data", "train", "sample", "evaluate"):
        kept[name] = getattr(case, name).model_dump(mode="json", exclude=OUTSIDE_KEY.get(name))
    del kept["train"]["init_from"]
    teacher = kept["train"].pop("teacher", None)
    if taught and teacher is not None:
        asked = {name: value for name, value in teacher.items() if name not in ("model", "case", "label")}
        kept["train"]["teacher"] = asked
    return dict(_flat(kept, ""))


def _flat(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, held in value.items():
            yield from _flat(held, f"{place}.{name}" if place else name)
    else:
        yield place, value


def _shown(settings: Mapping[str, Any], place: str) -> str:
    return json.dumps(settings[place]) if place in settings else "not set"
