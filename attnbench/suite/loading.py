"""YAML -> Suite -> Cases: every check of what a user writes into a suite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from attnbench import plugins
from attnbench.errors import SuiteError, UnknownNameError
from attnbench.models.options import with_all_options
from attnbench.models.recipes import load_recipes, merge
from attnbench.problems import SET_BY_RECIPE, Problem, allowed_keys, problems_in, unknown_key
from attnbench.specs import (
    NOISE,
    Case,
    DataSpec,
    DiagnoseSpec,
    EvaluateSpec,
    ModelConfig,
    ProfileSpec,
    SampleSpec,
    Spec,
    TrainSpec,
)
from attnbench.stages.training.initial_weights import initial_fingerprint
from attnbench.storage.names import STORE
from attnbench.suite import matrix
from attnbench.suite.checks import case_problems, name_problems
from attnbench.suite.distinct import repetitions, shared_measurements
from attnbench.suite.exceptions import apply_exceptions, read_exceptions
from attnbench.suite.excluding import without_excluded
from attnbench.suite.extending import read_suite
from attnbench.suite.files import find_suite, list_suites, shipped_folder
from attnbench.suite.matrix import Draft
from attnbench.suite.overrides import PATH_SETTINGS, absolute_override, absolute_path, override
from attnbench.suite.teachers import with_teachers
from attnbench.yaml_source import Origin, Settings, show_path, show_value

__all__ = [
    "PATH_SETTINGS",
    "Suite",
    "SuiteSpec",
    "find_suite",
    "list_suites",
    "load_suite",
    "of_cases",
    "shipped_folder",
    "suite_json_schema",
]

FEW = 3  # cases named by their labels; more are counted
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


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A checked suite and its cases."""

    name: str
    path: Path
    question: str
    cases: tuple[Case, ...]
    settings: dict[str, Any]
    """The content of the file and of those it extends, with the overrides in it."""
    overrides: tuple[str, ...] = ()
    """As they were given, but for relative paths, which are absolute."""
    seeds: int | None = None
    """How many seeds `--seeds` asked for."""
    chosen: tuple[str, ...] = ()
    """What `--case` has chosen the cases by; empty: all of them."""

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What its settings ruin without an error, each with the labels of the cases it is for."""
        found: dict[str, list[str]] = {}
        for case in self.cases:
            for warning in case.train.warnings():
                found.setdefault(warning, []).append(case.label)
        return found


@dataclass
class _Findings:
    """Problems so far, each once, by where they were written."""

    settings: Settings
    lines: dict[tuple[Origin, str], None]

    def add(self, problems: Iterable[Problem], draft: Draft | None = None) -> None:
        for problem in problems:
            path = draft.written(problem.path) if draft else problem.path
            origin = self.settings.origin(path)
            self.lines[origin, f"{origin.where}: {show_path(path)}: {problem.message}"] = None

    def raise_all(self) -> None:
        if self.lines:
            raise SuiteError("\n".join(line for _, line in sorted(self.lines, key=lambda entry: entry[0])))


def load_suite(source: str | Path, overrides: Sequence[str] = (), *, seeds: int | None = None) -> Suite:
    """Read a suite by path, or a shipped one by name, and resolve its cases; needs no data.

    `overrides` are `dotted.key=value` with the value in YAML; `seeds` is how many, from 0 on, in place of the
    suite's one. Raises SuiteError with one line per problem, in file order; UnknownNameError for a name no
    shipped suite has.
    """
    path = find_suite(source)
    settings = read_suite(path)
    override(settings, overrides, seeds)
    matrix.expand_shorthand(settings.data)
    axes, problems = matrix.read_axes(settings, SuiteSpec)
    rules, wrong_rules = read_exceptions(settings, axes, SuiteSpec)
    findings = _Findings(settings, {})
    drafts, wrong_exclusions = without_excluded(list(matrix.drafts(settings, axes)), axes, settings)
    findings.add([*problems, *wrong_rules, *wrong_exclusions])
    findings.add(apply_exceptions(rules, drafts))
    resolved = [(draft, _resolve(draft, findings)) for draft in drafts]
    findings.raise_all()
    pairs, of_teachers = with_teachers([(draft, case) for draft, case in resolved if case is not None])
    for draft, problem in of_teachers:
        findings.add([problem], draft)
    findings.raise_all()
    findings.add([*repetitions(pairs), *shared_measurements(pairs)])
    findings.raise_all()
    cases = tuple(case for _, case in pairs)
    question = settings.data["question"].strip()
    return Suite(
        name=cases[0].suite,
        path=path,
        question=question,
        cases=cases,
        settings=settings.data,
        overrides=tuple(map(absolute_override, overrides)),
        seeds=seeds,
    )


def of_cases(labels: Sequence[str], num_cases: int) -> str:
    """Name the cases of a suite that something is about, by their labels where they are few."""
    if len(labels) == num_cases:
        return "every case"
    return ", ".join(labels) if len(labels) <= FEW else f"{len(labels)} of {num_cases} cases"


def suite_json_schema() -> dict[str, Any]:
    """Return the JSON schema of suite files, for editors; it knows no plugin's options."""
    schema = SuiteSpec.model_json_schema()
    definitions = schema["$defs"]
    definitions["SampleSpec"]["properties"]["noise"]["default"] = NOISE
    model = definitions["ModelConfig"]
    recipe = {"type": "string", "description": "Name of a recipe.", "examples": list(load_recipes())}
    kept = {key: value for key, value in model["properties"].items() if key not in SET_BY_RECIPE}
    model.update(properties={"recipe": recipe, **kept}, required=["recipe"], description="A recipe, changed.")
    definitions["AttentionSpec"] = {"anyOf": [{"type": "string"}, definitions["AttentionSpec"]]}
    for section in ("model", "data"):
        described = schema["properties"][section]
        inner = {key: described.pop(key) for key in ("$ref", "oneOf", "discriminator") if key in described}
        described["anyOf"] = [{"type": "string"}, inner]
    schema["properties"]["diagnose"]["anyOf"].append({"type": "boolean"})
    # `matrix` may vary a required setting, which then stands nowhere else
    schema["required"] = ["name", "question"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _resolve(draft: Draft, findings: _Findings) -> Case | None:
    """Return the case that a draft makes, or None with what is wrong added to `findings`."""
    data, registry = draft.data, plugins.registry()
    if isinstance(data.get("matrix"), dict):
        data["matrix"] = {}  # its keys and lists have been checked
    _resolve_paths(draft, findings.settings)
    _name_the_noise(data)
    in_model, has_recipe = _resolve_recipe(data)
    problems = [*draft.problems, *in_model, *name_problems(data, registry)]
    try:
        spec = SuiteSpec.model_validate(data)
    except ValidationError as error:
        found = problems_in(error, SuiteSpec, data)
        # a model without its recipe lacks half its settings, which would only say so again
        problems += [p for p in found if has_recipe or p.path[:1] != ("model",)]
    findings.add(problems, draft)
    if problems:
        return None
    case = _case(draft, spec, with_all_options(spec.model, registry), registry)
    findings.add(case_problems(case, registry), draft)
    return case


def _initial(folder: Path | None) -> str:
    """Return the fingerprint of the weights to start from; empty for a folder that is not there (yet)."""
    return initial_fingerprint(folder) if folder is not None and folder.exists() else ""


def _case(draft: Draft, spec: SuiteSpec, model: ModelConfig, registry: plugins.Registry) -> Case:
    return Case(
        suite=spec.name,
        question=spec.question.strip(),
        label=matrix.label_of(draft, spec.model),
        axes=matrix.axes_of(draft, spec.model),
        exceptions=tuple(_excuse(spec.exceptions[index]) for index in draft.exceptions),
        seed=draft.data.get("seed", 0),  # a list of seeds has become an axis
        code={name: registry.backends[name].code for name in sorted(model.attention_names())},
        initial=_initial(spec.train.init_from),
        model=model,
        data=spec.data,
        train=spec.train,
        sample=spec.sample,
        evaluate=spec.evaluate,
        profile=spec.profile,
        diagnose=spec.diagnose,
    )


def _excuse(exception: ExceptionSpec) -> str:
    """Say in one line what an exception sets and why."""
    settings = ", ".join(f"{key} = {show_value(value)}" for key, value in exception.set.items())
    return f"{settings} ({exception.reason.strip()})"


def _resolve_recipe(data: dict[str, Any]) -> tuple[list[Problem], bool]:
    """Put the recipe's settings under those of `model`; return problems, and whether there was a recipe."""
    model = data.get("model")
    if not isinstance(model, dict):
        return [], True  # the schema says what is wrong
    allowed = allowed_keys(SuiteSpec, ("model",))
    problems = [unknown_key(("model", key), allowed) for key in model if key not in allowed]
    name = model.get("recipe")
    if isinstance(name, str):
        try:
            data["model"] = merge(name, {key: model[key] for key in model if key in allowed - {"recipe"}})
        except UnknownNameError as error:
            return [*problems, Problem(("model", "recipe"), str(error))], False
        return problems, True
    got = "is missing" if name is None else f"must be a name, got {name!r}"
    recipes = ", ".join(load_recipes())
    return [*problems, Problem(("model", "recipe"), f"{got}; available: {recipes}")], False


def _name_the_noise(data: dict[str, Any]) -> None:
    """Say which noise samples start from; settings that do not are those of versions with another one."""
    sample = data.setdefault("sample", {})
    if isinstance(sample, dict):
        data["sample"] = {"noise": NOISE, **sample}


def _resolve_paths(draft: Draft, settings: Settings) -> None:
    """Make paths absolute: `~` is the home folder, relative ones start where they were written."""
    for path in PATH_SETTINGS:
        place: Any = draft.data
        for part in path[:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        written = place.get(path[-1]) if isinstance(place, dict) else None
        if isinstance(written, str) and (written.strip() or path != ("train", "teacher", "model")):
            folder = settings.origin(draft.written(path)).folder
            place[path[-1]] = absolute_path(folder, written)
