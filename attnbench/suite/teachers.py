"""Who teaches a case: an exported folder, a case of another run or of its own suite; and whether it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.data import class_names
from attnbench.errors import DataError, UserInputError
from attnbench.exchange.config import CodecInfo
from attnbench.exchange.exported import read_config
from attnbench.models.resolution import input_size
from attnbench.problems import Problem
from attnbench.specs import HUB_NAME, Case, ModelConfig, TeacherOrigin, UserImages
from attnbench.stages.latents.model_space import latent_factor
from attnbench.stages.training.inheritance import SHELL
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import AVERAGED, RESULTS
from attnbench.storage.run_folders import case_of, choose_result, store_of
from attnbench.suite.exceptions import same
from attnbench.suite.matrix import Draft
from attnbench.yaml_source import KeyPath, show_value

TEACHER: KeyPath = ("train", "teacher")
ON_HUB = "hub:"
Pairs = Sequence[tuple[Draft, Case]]


@dataclass(frozen=True, kw_only=True)
class _Taught:
    """What a teacher was trained on and for, as far as it says."""

    who: str
    model: ModelConfig
    objective: str
    side: int | None
    num_classes: int | None
    classes: tuple[str, ...] | None
    data: str
    codec: CodecInfo | None


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
            problems.append((draft, Problem(_place(case), str(error))))
        found.append((draft, case))
    return found, problems


def missing_teacher(case: Case) -> str:
    """Return what to do where the teacher that a case names is not there, else nothing."""
    teacher = case.train.teacher
    if teacher is None or case.teacher is not None:
        return ""
    return (
        f"train.teacher.model: {teacher.model} does not exist; name a folder of `attnbench export` or "
        "`attnbench import` with -o train.teacher.model=PATH, or a case of a run as RUN:CASE"
    )


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


def _place(case: Case) -> KeyPath:
    """Return the setting that names a case's teacher."""
    teacher = case.train.teacher
    return (*TEACHER, "model" if teacher is None or teacher.case is None else "case")


def _bare(model: ModelConfig) -> ModelConfig:
    """Return a model without what only tables of the paper need."""
    return model.model_copy(update={"summary": "", "source": "", "published": {}, "origin": {}})


def teacher_problems(case: Case) -> Iterator[Problem]:
    """Yield why the teacher that was found cannot teach: another shape, objective, data, autoencoder."""
    teacher, origin = case.train.teacher, case.teacher
    if teacher is None:
        return
    if teacher.variance and not case.model.learned_variance:
        yield Problem(
            ("train", "teacher", "variance"),
            f"is {teacher.variance:g}, but the model {case.model.name!r} predicts no variance; set it to 0, "
            "or model.learned_variance: true (with train.objective: ddpm)",
        )
    if origin is None:
        return
    theirs = _described(origin)
    reasons = (*_other_shape(case, theirs), *_other_input(case, theirs), *_other_data(case, theirs))
    for told, step in reasons:
        yield Problem(_place(case), f"{theirs.who} {told}; {step}")
    if teacher.variance and not theirs.model.learned_variance:
        yield Problem(
            ("train", "teacher", "variance"),
            f"is {teacher.variance:g}, but {theirs.who} predicts no variance; set it to 0, or choose a "
            "teacher trained with model.learned_variance: true",
        )


def _described(origin: TeacherOrigin) -> _Taught:
    if origin.case is not None:
        case = origin.case
        return _Taught(
            who=f"the case {case.label!r}",
            model=case.model,
            objective=case.train.objective,
            side=_side(case),
            num_classes=None,
            classes=_classes(case),
            data=_data(case),
            codec=None,
        )
    assert origin.folder is not None
    config = read_config(origin.folder)
    return _Taught(
        who=str(origin.folder),
        model=config.model,
        objective=config.objective,
        side=config.input.shape[1],
        num_classes=config.input.num_classes,
        classes=None if config.class_names is None else tuple(config.class_names),
        data=config.data,
        codec=config.codec,
    )


def _other_shape(case: Case, theirs: _Taught) -> Iterator[tuple[str, str]]:
    """Yield sizes in which both must agree for what is asked of the teacher."""
    teacher = case.train.teacher
    assert teacher is not None
    needed: tuple[str, ...] = ("in_channels", "input")
    if teacher.features:
        needed = ("depth", "dim", "patch_size", *needed)
    if teacher.inherit != "none":
        needed = SHELL
    differing = [
        f"{name} {getattr(theirs.model, name)} (here {getattr(case.model, name)})"
        for name in needed
        if getattr(theirs.model, name) != getattr(case.model, name)
    ]
    if differing:
        yield (
            f"is a model with {', '.join(differing)}",
            "choose a model of these sizes, or teacher.inherit: none and features: 0, which need the same "
            "input and channels alone",
        )
    if teacher.is_asked and case.model.class_dropout and not theirs.model.class_dropout:
        yield (
            f"was trained without dropped labels (here model.class_dropout {case.model.class_dropout:g}), so "
            "it has nothing to say of them",
            "set model.class_dropout: 0, or choose another teacher",
        )


def _other_input(case: Case, theirs: _Taught) -> Iterator[tuple[str, str]]:
    if theirs.objective != case.train.objective:
        yield (
            f"was trained with objective {theirs.objective} (here {case.train.objective})",
            f"set train.objective: {theirs.objective}, or choose another teacher",
        )
    side, classes = _side(case), _classes(case)
    if None not in (theirs.side, side) and theirs.side != side:
        yield (
            f"takes inputs of side {theirs.side} (here {side})",
            "choose data.image_size by it, or bring it to this side first: `attnbench transfer FOLDER "
            "--image-size PIXELS --to NEW`",
        )
    if theirs.num_classes is not None and classes is not None and theirs.num_classes != len(classes):
        yield f"knows {theirs.num_classes} classes (here {len(classes)})", "choose data with its classes"
    elif theirs.classes is not None and classes is not None and theirs.classes != classes:
        yield "knows other classes, or in another order", "choose the data that it was trained on"


def _other_data(case: Case, theirs: _Taught) -> Iterator[tuple[str, str]]:
    """Yield other images or another autoencoder; what a teacher does not say of itself is not compared."""
    ours = _data(case)
    of_users = isinstance(case.data, UserImages) and not theirs.data.startswith(("digits", "photo-patches"))
    if theirs.data and theirs.data != ours and not of_users:
        yield f"was trained on {theirs.data} (here {ours})", "choose that data, or another teacher"
    codec = case.data.codec if isinstance(case.data, UserImages) else None
    if theirs.codec is None or codec is None:
        return
    hub = theirs.codec.hub.partition("/vae")[0].partition(" ")[0]
    if theirs.codec.kind != codec.kind or (hub and codec.hub and not theirs.codec.hub.startswith(codec.hub)):
        named = codec.hub or codec.path
        yield (
            f"was trained on latents of {theirs.codec.kind} {theirs.codec.hub}".rstrip()
            + f" (here {codec.kind} {named})",
            "set data.codec to that autoencoder, or choose another teacher",
        )


def _data(case: Case) -> str:
    return f"{case.data.name} at {case.data.image_size} px"


def _side(case: Case) -> int | None:
    try:
        return input_size(case.model, case.data.image_size, latent_factor(case))
    except UserInputError:  # said where it is wrong
        return None


def _classes(case: Case) -> tuple[str, ...] | None:
    try:
        return class_names(case.data)
    except DataError:  # a run says what is wrong with it, and a suite needs no data to be valid
        return None
