"""A teacher trained in a second, and the cases that it teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exchange_cases import digits_case, workspace_of
from safetensors.torch import load_file

from attnbench.specs import Case, TeacherOrigin, TeacherSpec
from attnbench.stages import train
from attnbench.storage.names import AVERAGED

SOFTMAX = {"name": "softmax"}
LINEAR = {"name": "linear"}
STILL = 1e-30  # a learning rate too small to change any float32 weight


def teacher_case(**settings: Any) -> Case:
    """Return the training of a one-layer softmax model on digits, a DDPM with learned variance."""
    return digits_case("teacher", SOFTMAX, steps=3, **settings)


def student(
    teacher: Case, attention: dict[str, Any] = LINEAR, *, asked: dict[str, Any], **settings: Any
) -> Case:
    """Return a case that a case of the same run teaches, `asked` of train.teacher."""
    spec = TeacherSpec(case={"model.attention": "softmax"}, **asked)
    case = digits_case("student", attention, teacher=spec, **({"log_every": 1} | settings))
    origin = TeacherOrigin(identity=teacher.key("train"), case=teacher)
    return case.model_copy(update={"teacher": origin})


def weights_of(root: Path, case: Case, name: str = AVERAGED) -> dict[str, Any]:
    """Return a finished training's tensors by name."""
    return load_file(workspace_of(root / "run").folder("train", case) / name)


def run_both(root: Path, case: Case) -> dict[str, Any]:
    """Train a case, its teacher first where it is not there, and return its averaged weights."""
    train.run(case, workspace_of(root / "run"))
    return weights_of(root, case)
