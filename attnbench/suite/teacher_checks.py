"""Whether the model that was found can teach a case: its shape, objective, data and autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnbench.data import class_names
from attnbench.errors import DataError, UserInputError
from attnbench.exchange.config import CodecInfo
from attnbench.exchange.exported import read_config
from attnbench.models.resolution import input_size
from attnbench.problems import Problem
from attnbench.specs import Case, ModelConfig, TeacherOrigin, UserImages
from attnbench.stages.latents.model_space import latent_factor
from attnbench.stages.training.inheritance import SHELL
from attnbench.yaml_source import KeyPath

TEACHER: KeyPath = ("train", "teacher")


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
        yield Problem(place_of_teacher(case), f"{theirs.who} {told}; {step}")
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
    if teacher.inherit != "none":
        parts = zip(_parts(theirs.model), _parts(case.model), strict=True)
        differing += [f"{their} (here {our})" for their, our in parts if their != our]
    if differing:
        yield (
            f"is a model with {', '.join(differing)}",
            "choose a model of these sizes, or teacher.inherit: none and features: 0, which need the same "
            "input and channels alone",
        )
    needs_null = teacher.is_asked or teacher.inherit != "none"
    if needs_null and case.model.class_dropout and not theirs.model.class_dropout:
        yield (
            f"was trained without dropped labels (here model.class_dropout {case.model.class_dropout:g}), so "
            "it knows nothing of them",
            "set model.class_dropout: 0, or choose another teacher",
        )


def _parts(model: ModelConfig) -> tuple[str, ...]:
    """Describe what is beside a model's attention and has weights of its own, beyond the sizes in SHELL."""
    ffn, moe = model.ffn, model.ffn.moe
    experts = ""
    if moe is not None:
        where = "every" if moe.every_block else "every second"
        experts = f" with {moe.num_experts} experts in {where} block ({moe.routing})"
    learned = "learned" if model.position_embedding == "learned" else "not learned"
    return (
        f"ffn {ffn.kind} of width {ffn.hidden_width(model.dim)}{experts}",
        f"stream_conv {str(model.stream_conv).lower()}",
        f"positions {learned}",
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


def place_of_teacher(case: Case) -> KeyPath:
    """Return the setting that names a case's teacher."""
    teacher = case.train.teacher
    return (*TEACHER, "model" if teacher is None or teacher.case is None else "case")
