"""Who teaches a case: an exported folder, a case of another run, or a case of its own suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import UserInputError
from attnbench.exchange.exported import read_config
from attnbench.problems import Problem
from attnbench.specs import HUB_NAME, Case, ModelConfig, TeacherOrigin
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import AVERAGED, RESULTS
from attnbench.storage.run_folders import case_of, choose_result, store_of
from attnbench.suite.exceptions import same
from attnbench.suite.matrix import Draft
from attnbench.suite.teacher_checks import TEACHER, place_of_teacher, teacher_problems
from attnbench.yaml_source import show_value

ON_HUB = "hub:"
Pairs = Sequence[tuple[Draft, Case]]


def with_teachers(pairs: Pairs) -> tuple[list[tuple[Draft, Case]], list[tuple[Draft, Problem]]]:
    """Return the cases with their teachers found, and what is wrong with those teachers.

    A folder or run that is not there (yet) leaves a case without one: `missing_teacher` says so before a run.
    """
    found: list[tuple[Draft, Case]] = []
    problems: list[tuple[Draft, Problem]] = []
    known: dict[str, TeacherOrigin | None] = {}
    for draft, case in pairs:
        teacher = case.train.teacher
        if teacher is None:
            found.append((draft, case))
            continue
        origin: TeacherOrigin | None
        try:
            if teacher.case is not None:
                origin = _of_suite(teacher.case, draft, pairs)
            else:
                named = str(teacher.model)
                if named not in known:
                    known[named] = _outside(named)
                origin = known[named]
            case = case.model_copy(update={"teacher": origin})
            problems += [(draft, problem) for problem in teacher_problems(case)]
        except UserInputError as error:
            problems.append((draft, Problem(place_of_teacher(case), str(error))))
        found.append((draft, case))
    return found, problems


def missing_teacher(case: Case) -> str:
    """Return what to do where the teacher that a case names is not there, else nothing."""
    teacher, origin = case.train.teacher, case.teacher
    place = None if origin is None else _place_of(origin)
    if teacher is None or (origin is not None and (place is None or place.exists())):
        return ""  # what this run trains itself has no place yet
    return (
        f"train.teacher.model: {place or teacher.model} does not exist; name a folder of `attnbench export` "
        "or `attnbench import` with -o train.teacher.model=PATH, or a case of a run as RUN:CASE"
    )


def _place_of(origin: TeacherOrigin) -> Path | None:
    """Return where a teacher's weights lie on this machine: a case may have been checked on another one."""
    if origin.folder is not None or origin.store is None or origin.case is None:
        return origin.folder
    return origin.store / "train" / origin.case.key("train") / AVERAGED


def _outside(named: str) -> TeacherOrigin | None:
    """Find an exported folder or a run's case; None where neither is there."""
    repository = named.rpartition("/hub:")[2].removeprefix(ON_HUB)
    if ON_HUB in named and HUB_NAME.fullmatch(repository.partition("@")[0]):
        raise UserInputError(
            f"{ON_HUB}{repository} is not on this machine as a model that can teach; run `attnbench import "
            f"{ON_HUB}{repository} --to FOLDER` once and name FOLDER"
        )
    place, label = Path(named), None
    if not place.exists() and ":" in named:
        folder, _, label = named.partition(":")
        place = Path(folder)
    if not place.exists():
        return None
    if (place / RESULTS).is_file():
        return _of_run(place, label)
    if label is not None:
        raise UserInputError(f"{named}: {place} is not the folder of a run ({RESULTS} is missing)")
    config = read_config(place)
    return TeacherOrigin(
        identity=config.weights_sha256, folder=place.absolute(), exported=_bare(config.model)
    )


def _of_run(run_dir: Path, label: str | None) -> TeacherOrigin:
    """Return a finished training of another run; raises UserInputError where it is not finished."""
    case = case_of(run_dir, choose_result(run_dir, label))
    store = store_of(run_dir)
    weights = store / "train" / case.key("train") / AVERAGED
    if not weights.is_file():
        raise UserInputError(
            f"the training of {case.label!r} in {run_dir} is not finished, or not in the store any more "
            f"({weights} is missing); run the suite {case.suite} again"
        )
    return TeacherOrigin(identity=file_sha256(weights), store=store, case=case)


def _of_suite(wanted: Mapping[str, Any], draft: Draft, pairs: Pairs) -> TeacherOrigin:
    """Return the case of the same suite at the named place of the matrix; raises UserInputError."""
    own = {".".join(map(str, axis.target)): (axis, index) for axis, index in draft.points}
    unknown = [key for key in wanted if key not in own]
    if unknown:
        raise UserInputError(
            f"{', '.join(unknown)} names no axis of the matrix; its axes: {', '.join(own) or '(none)'}"
        )
    for other, case in pairs:
        if case.train.teacher is None and _is_at(other, wanted, draft):
            short = case.model_copy(update={"question": "", "model": _bare(case.model)})
            return TeacherOrigin(identity=case.key("train"), case=short)
    named = ", ".join(f"{key} {show_value(value)}" for key, value in wanted.items())
    values = "; ".join(
        f"{key}: {', '.join(show_value(value) for value in own[key][0].values)}" for key in wanted
    )
    raise UserInputError(
        f"no case of this suite without a teacher has {named} (and this case's place on the other axes); "
        f"the matrix has {values}. Keep the teacher's values in the matrix, and choose cases with --case"
    )


def _is_at(other: Draft, wanted: Mapping[str, Any], student: Draft) -> bool:
    """Tell whether a draft has the named values, and on all other axes but the teacher's the student's."""
    for (axis, index), (_, own) in zip(other.points, student.points, strict=True):
        key = ".".join(map(str, axis.target))
        if key in wanted:
            if not same(axis.values[index], wanted[key]):
                return False
        elif axis.target[:2] != TEACHER and index != own:
            return False
    return True


def _bare(model: ModelConfig) -> ModelConfig:
    """Return a model without what only tables of the paper need."""
    return model.model_copy(update={"summary": "", "source": "", "published": {}, "origin": {}})
