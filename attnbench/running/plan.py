"""What a run will cost before it runs: cases, what is finished, time and disk. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from attnbench.specs import Case, TrainSpec
from attnbench.stages.latents.model_space import assumption
from attnbench.stages.profile import missing_rows
from attnbench.storage.store import FinishedStages, Stage, read_output, stages_of
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
) -> list[PlannedCase]:
    """Plan every case; stages shared by two cases are counted once. `machine` is this one by default.

    Memory is that of a case on `device` (by default this machine's), trained by so many processes.
    """
    device = device or default_device()
    machine, done = machine or this_machine(default_device()), FinishedStages(store)
    counted: set[tuple[Stage, str]] = set()
    with each_once():
        planned = [_planned(case, machine, done, counted) for case in cases]
        return [
            one if one.finished == stages_of(one.case) or one.problem
            else replace(one, memory=memory_need(one.case, device, processes))
            for one in planned
        ]  # fmt: skip


def _planned(
    case: Case, machine: Machine, done: FinishedStages, counted: set[tuple[Stage, str]]
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


def finished_trainings(store: Path) -> dict[str, int]:
    """Return the steps of every finished training in a store, by its key."""
    found = {}
    for folder in (store / "train").glob("*"):
        output = read_output(folder)
        steps = [int(m.value) for m in output.measurements if m.name == "steps"] if output else []
        if steps:
            found[folder.name] = steps[0]
    return found


def finished_shorter(case: Case, store: Path, finished: Mapping[str, int]) -> int | None:
    """Return the steps of the longest finished training that differs from the case's in having fewer steps.

    None where the case's own has been begun.
    """
    found = next((steps for steps, key in _shorter(case, finished) if key in finished), None)
    if found is None or any((store / "train" / case.key("train")).glob("*")):
        return None
    return found


def _shorter(case: Case, finished: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Yield the numbers of steps of finished trainings below the case's own, and its key with it."""
    for steps in sorted({steps for steps in finished.values() if steps < case.train.steps}, reverse=True):
        train = case.train.once(f"{steps} steps", partial(_with_steps, case.train, steps))
        yield steps, case.model_copy(update={"train": train}).key("train")


def _with_steps(train: TrainSpec, steps: int) -> TrainSpec:
    return train.model_copy(update={"steps": steps})


def warnings(suite: Suite, store: Path) -> list[str]:
    """Return what a person should know before a suite runs, one line each, the cases it is for first."""
    found = {text: list(labels) for text, labels in suite.warnings.items()}
    own = {case.key("train") for case in suite.cases}  # a suite that asks for both means both
    finished = {key: steps for key, steps in finished_trainings(store).items() if key not in own}
    other = []
    for case in suite.cases:
        steps = finished_shorter(case, store, finished)
        if steps is None:
            other.append(case)
            continue
        text = (
            f"train.steps {case.train.steps:,}: the finished training of {steps:,} steps is not gone on "
            f"from, all {case.train.steps:,} are made anew; to train it further, `attnbench export` it "
            "and name the folder in train.init_from"
        )
        found.setdefault(text, []).append(case.label)
    found |= made_anew(other, store.parent / suite.name)
    return [f"{of_cases(labels, len(suite.cases))}: {text}" for text, labels in found.items()]
