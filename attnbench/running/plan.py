"""What a run will cost before it runs: cases, what is finished, time and disk. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attnbench.devices import default_device
from attnbench.errors import AttnbenchError
from attnbench.running.estimates import (
    NUM_CLASSES_GUESS,
    closed_form,
    disk_needed_bytes,
    known_classes,
    row_time_s,
    stage_time_s,
    training_macs,
)
from attnbench.running.machines import Machine, this_machine
from attnbench.running.made_anew import made_anew
from attnbench.running.memory import MemoryNeed, memory_need
from attnbench.running.needs import missing_inputs
from attnbench.running.once import each_once, shared_by
from attnbench.specs import Case
from attnbench.stages.latents.model_space import assumption
from attnbench.stages.profile import missing_rows
from attnbench.storage.store import FinishedStages, Stage, stages_of
from attnbench.storage.trainings import (
    finished_shorter,
    finished_trainings,
    has_begun,
    of_any_length,
)
from attnbench.suite.loading import Suite, of_cases


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """One case, which of its stages are finished, and what the rest will take."""

    case: Case
    finished: tuple[Stage, ...]
    macs: int = 0
    """Of one image's forward pass, full count."""
    training_macs: int = 0
    """Of the whole training, finished or not."""
    times_s: Mapping[Stage, float | None] = field(default_factory=dict)
    """Of the stages that this case has yet to run, on one device; None: not estimated."""
    disk: Mapping[Stage, int] = field(default_factory=dict)
    """What these stages will store, in bytes."""
    missing: tuple[str, ...] = ()
    """What a run would refuse for want of the user's folders and files, each with the next step."""
    memory: MemoryNeed | None = None
    """What it takes at its peak; None where it is finished, or cannot be estimated."""
    problem: str = ""
    """Why this case cannot be planned, let alone run."""
    assumed: tuple[str, ...] = ()
    """What its sizes rest on while its autoencoder or its data are not on this machine."""

    @property
    def time_s(self) -> float:
        """All that is estimated of its time."""
        return sum(filter(None, self.times_s.values()))

    @property
    def disk_bytes(self) -> int:
        """All that it will store."""
        return sum(self.disk.values())


@dataclass(frozen=True, kw_only=True)
class PlannedProfile:
    """The rows that the profile of a suite has yet to measure, all of its cases together."""

    num_rows: int = 0
    num_cases: int = 0
    time_s: float = 0.0


def plan(
    cases: Sequence[Case],
    store: Path,
    machine: Machine | None = None,
    *,
    device: str | None = None,
    processes: int = 1,
    elsewhere: int = 0,
) -> list[PlannedCase]:
    """Plan every case; stages shared by two cases are counted once. `machine` is this one by default.

    Memory is that of a case on `device` (by default this machine's), trained by so many processes there.
    """
    device = device or default_device()
    machine, done = machine or this_machine(default_device()), FinishedStages(store)
    counted: set[tuple[Stage, str]] = set()
    before = _steps_made_before(cases, store)
    with each_once():
        planned = [_planned(case, machine, done, counted, before.get(case.id, 0)) for case in cases]
        return [
            one if one.finished == stages_of(one.case) or one.problem
            else replace(one, memory=memory_need(one.case, device, processes, elsewhere))
            for one in planned
        ]  # fmt: skip


def _steps_made_before(cases: Sequence[Case], store: Path) -> dict[str, int]:
    """Return, by a case's id, the steps of its training that a shorter one makes, or has made, for it."""
    finished = finished_trainings(store)
    lengths: dict[str, set[int]] = {}
    for case in cases:
        shorter = finished_shorter(case, store, finished)
        own = lengths.setdefault(of_any_length(case), set())
        if case.key("train") in finished or not has_begun(case, store):
            own.add(case.train.steps)
        if shorter is not None:
            own.add(shorter.train.steps)
    return {
        case.id: max((n for n in lengths[of_any_length(case)] if n < case.train.steps), default=0)
        for case in cases
        if case.train.teacher is None
    }


def _planned(
    case: Case, machine: Machine, done: FinishedStages, counted: set[tuple[Stage, str]], steps_before: int
) -> PlannedCase:
    """Plan one case; what it has yet to run is `counted` from now on."""
    finished = tuple(stage for stage in stages_of(case) if done.has(stage, case.key(stage)))
    open_stages = [s for s in stages_of(case) if s not in finished and (s, case.key(s)) not in counted]
    counted.update((s, case.key(s)) for s in open_stages)
    first = _teacher_to_train(case, done) if "train" in open_stages else None
    missing = missing_inputs(case)
    one = PlannedCase(case=case, finished=finished, missing=missing, assumed=_assumed(case))
    try:
        times_s = {s: stage_time_s(case, s, machine) for s in open_stages}
        if (all_s := times_s.get("train")) is not None:
            times_s["train"] = all_s * (1 - steps_before / case.train.steps)
        disk = {s: disk_needed_bytes(case, [s]) for s in open_stages}
        if first is not None and ("train", first.key("train")) not in counted:
            counted.add(("train", first.key("train")))
            taught = stage_time_s(first, "train", machine)
            times_s["train"] = (times_s["train"] or 0.0) + (taught or 0.0)
            disk["train"] += disk_needed_bytes(first, ["train"])
        return replace(
            one, macs=closed_form(case).full, training_macs=training_macs(case), times_s=times_s, disk=disk
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's backend may raise anything
        return replace(one, problem=_in_words(error, missing))


def _teacher_to_train(case: Case, done: FinishedStages) -> Case | None:
    """Return the case of the same suite that teaches a case, where its training is not finished."""
    teacher = case.teacher.trains_here if case.teacher is not None else None
    return None if teacher is None or done.has("train", teacher.key("train")) else teacher


@shared_by(lambda case: (case.data.text(), case.model.input, case.model.in_channels))
def _assumed(case: Case) -> tuple[str, ...]:
    return tuple(filter(None, (assumption(case), _guessed_classes(case))))


def _guessed_classes(case: Case) -> str:
    if known_classes(case) is not None:
        return ""
    return f"the data cannot be read yet: {NUM_CLASSES_GUESS} classes are assumed"


def _in_words(error: BaseException, missing: Sequence[str]) -> str:
    """Return why a case cannot be planned; what is said already as missing only once."""
    if not isinstance(error, AttnbenchError):
        return f"its model cannot be built: {type(error).__name__}: {error}"
    said = str(error)
    return next((reason for reason in missing if said in reason), said)


def plan_profile(planned: Sequence[PlannedCase], store: Path, machine: Machine) -> PlannedProfile:
    """Plan the profile of the cases that can be planned, which is measured when all are finished."""
    cases = [one.case for one in planned if not one.problem]
    rows = missing_rows(cases, store, default_device())
    with each_once():
        return PlannedProfile(
            num_rows=len(rows),
            num_cases=len({case.id for case, _ in rows}),
            time_s=sum(row_time_s(case, side, machine) for case, side in rows),
        )


def warnings(suite: Suite, store: Path) -> list[str]:
    """Return what a person should know before a suite runs, one line each, the cases it is for first."""
    found = {text: list(labels) for text, labels in suite.warnings.items()}
    finished = finished_trainings(store)
    other = []
    for case in suite.cases:
        shorter = finished_shorter(case, store, finished)
        if shorter is None:
            other.append(case)
            continue
        done = shorter.train.steps
        text = (
            f"train.steps {case.train.steps:,}: goes on from the finished training of {done:,} steps; the "
            f"other {case.train.steps - done:,} are made"
        )
        found.setdefault(text, []).append(case.label)
    found |= made_anew(other, store.parent / suite.name)
    return [f"{of_cases(labels, len(suite.cases))}: {text}" for text, labels in found.items()]
