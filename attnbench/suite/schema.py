"""The schema of suite files: `SuiteSpec`, whose sections are in `attnbench.specs`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from attnbench.specs import (
    DataSpec,
    DiagnoseSpec,
    EvaluateSpec,
    ModelConfig,
    ProfileSpec,
    SampleSpec,
    Spec,
    TrainSpec,
)
from attnbench.storage.names import STORE

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every generator takes


class ExceptionSpec(Spec):
    """Settings that hold for some cases only."""

    when: dict[str, Any] = Field(min_length=1)
    """Axes of the matrix, and the value (or list of values) a case must have there."""
    set: dict[str, Any] = Field(min_length=1)
    """Dotted settings and the value they take in those cases."""
    reason: str = Field(min_length=1)
    """Why these cases differ; a comparison with exceptions has to say so."""


class SuiteSpec(Spec):
    """A suite as its file says it: one question, the settings of all cases, and what varies between them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Short name; results and reports lie in folders of this name (so not `store`, which is taken)."""
    question: str = Field(min_length=1)
    """What this suite answers, in one sentence."""
    extends: str | list[str] = Field(default=[])
    """Files relative to this one, or names of shipped suites, whose settings hold where this file and the
    later of them say nothing: mappings merge key by key, lists replace. Name and question are not taken."""
    seed: Seed | Annotated[list[Seed], Field(min_length=1)] = 0
    """Seed of weights, batches and noise; a list makes one case per seed."""
    model: ModelConfig
    """A recipe (`attnbench list models`) and the settings changed in it; a plain name is a recipe."""
    data: DataSpec
    """Images to train on and compare with; a plain name is short for `{name: ...}`."""
    train: TrainSpec = TrainSpec()
    """Training."""
    sample: SampleSpec = SampleSpec()
    """Sampling."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """Image quality."""
    profile: ProfileSpec = ProfileSpec()
    """Cost."""
    diagnose: DiagnoseSpec | None = None
    """What is recorded from inside the trained models; null (or false): nothing, true: with the defaults."""
    matrix: dict[str, list[Any]] = Field(default={})
    """Dotted settings and the values they take; the cases are the cartesian product."""
    exclude: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default=[])
    """Combinations of the matrix that are no cases: in each entry axes, and the value (or list of values)."""
    exceptions: list[ExceptionSpec] = Field(default=[])
    """What differs in some of the cases, with the reason."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name == STORE:
            raise ValueError("must not be 'store': finished stages lie in that folder; choose another name")
        return name
