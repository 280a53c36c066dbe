"""From the drafts of a suite to its cases: each section is read once, however many cases share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attnbench import plugins
from attnbench.errors import SuiteError, UnknownNameError
from attnbench.models.options import with_all_options
from attnbench.models.recipes import load_recipes, merge
from attnbench.problems import Problem, allowed_keys, problems_in, unknown_key
from attnbench.specs import NOISE, Case, ModelConfig
from attnbench.stages.training.initial_weights import initial_fingerprint
from attnbench.suite import matrix
from attnbench.suite.checks import case_problems, name_problems
from attnbench.suite.matrix import Draft
from attnbench.suite.overrides import PATH_SETTINGS, absolute_path
from attnbench.suite.schema import ExceptionSpec, SuiteSpec
from attnbench.yaml_source import KeyPath, Origin, Settings, show_path, show_value

PARTS = (*matrix.SECTIONS, "seed")
"""What an axis may vary and an exception set, each by itself: no two of them are checked together by the
schema. What settings of several do not go together `case_problems` says."""


@dataclass
class Findings:
    """Problems so far, each once, by where they were written."""

    settings: Settings
    lines: dict[tuple[Origin, str], None] = field(default_factory=dict)

    def add(self, problems: Iterable[Problem], draft: Draft | None = None) -> None:
        for problem in problems:
            path = draft.written(problem.path) if draft else problem.path
            origin = self.settings.origin(path)
            self.lines[origin, f"{origin.where}: {show_path(path)}: {problem.message}"] = None

    def raise_all(self) -> None:
        if self.lines:
            raise SuiteError("\n".join(line for _, line in sorted(self.lines, key=lambda entry: entry[0])))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One section of the settings (or the seed) as it is in some cases, and what follows from it alone."""

    read: Any
    """As the schema reads it."""
    model: ModelConfig | None = None
    """Of the model: with every option of its attention written out."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Of the model: fingerprints of its attentions' code."""
    initial: str = ""
    """Of the training: fingerprint of the weights to start from."""


@dataclass(kw_only=True)
class Resolver:
    """Makes cases of drafts; what is wrong goes into `findings`.

    A part of the settings is the same in all cases that have the same place on the axes in it and the same
    exceptions. It is read with the first of them.
    """

    settings: Settings
    findings: Findings
    _suite: SuiteSpec | None = None
    """What is the same in all cases: the name, the question and so on."""
    _parts: dict[tuple[str, KeyPath], _Part] = field(default_factory=dict)
    """By the name of a part and the place in it."""
    _fitting: set[tuple[Any, ...]] = field(default_factory=set)
    """Places of sections that have been checked together."""
    _coordinates: matrix.Coordinates = field(default_factory=matrix.Coordinates)

    def case(self, draft: Draft) -> Case | None:
        """Return the case that a draft makes, or None with what is wrong added to `findings`."""
        places = [(part, draft.place_in(part)) for part in PARTS]
        new = [place for place in places if place not in self._parts]
        if new:
            spec = self._read(draft)
            if spec is None:
                return None
            self._suite = self._suite or spec
            self._parts |= {place: _part(place[0], spec) for place in new}
        case = self._case(draft, {part: self._parts[part, place] for part, place in places})
        together = tuple(place for part, place in places if part != "seed")  # which goes with everything
        if together not in self._fitting:
            self._fitting.add(together)
            self.findings.add(case_problems(case, plugins.registry()), draft)
        return case

    def _read(self, draft: Draft) -> SuiteSpec | None:
        """Read all settings of a case; None with what is wrong added to `findings`."""
        data, problems = draft.written_out(self.settings)
        _resolve_paths(data, draft, self.settings)
        _name_the_noise(data)
        in_model, has_recipe = _resolve_recipe(data)
        problems += [*in_model, *name_problems(data, plugins.registry())]
        spec = None
        try:
            spec = SuiteSpec.model_validate(data)
        except ValidationError as error:
            found = problems_in(error, SuiteSpec, data)
            # a model without its recipe lacks half its settings, which would only say so again
            problems += [p for p in found if has_recipe or p.path[:1] != ("model",)]
        self.findings.add(problems, draft)
        return None if problems else spec

    def _case(self, draft: Draft, parts: Mapping[str, _Part]) -> Case:
        suite, model, train = self._suite, parts["model"], parts["train"]
        assert suite is not None
        assert model.model is not None
        starts = train.read.init_from is not None
        axes = self._coordinates.axes_of(draft, model.read, starts=starts)
        return Case(
            suite=suite.name,
            question=suite.question.strip(),
            label=matrix.label_of(draft, model.read, axes),
            axes=axes,
            exceptions=tuple(_excuse(suite.exceptions[index]) for index in draft.exceptions),
            seed=parts["seed"].read,
            code=dict(model.code),
            initial=train.initial,
            model=model.model,
            data=parts["data"].read,
            train=train.read,
            sample=parts["sample"].read,
            evaluate=parts["evaluate"].read,
            profile=parts["profile"].read,
            diagnose=suite.diagnose,
        )


def _part(name: str, spec: SuiteSpec) -> _Part:
    """Return a part of a suite's settings with what follows from it."""
    read = getattr(spec, name)
    if name == "train":
        return _Part(read=read, initial=_initial(spec.train.init_from))
    if name != "model":
        return _Part(read=read)
    registry = plugins.registry()
    model = with_all_options(spec.model, registry)
    code = {name: registry.backends[name].code for name in sorted(model.attention_names())}
    return _Part(read=read, model=model, code=code)


def _initial(folder: Path | None) -> str:
    """Return the fingerprint of the weights to start from; empty for a folder that is not there (yet)."""
    return initial_fingerprint(folder) if folder is not None and folder.exists() else ""


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


def _resolve_paths(data: dict[str, Any], draft: Draft, settings: Settings) -> None:
    """Make paths absolute: `~` is the home folder, relative ones start where they were written."""
    for path in PATH_SETTINGS:
        place: Any = data
        for part in path[:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        written = place.get(path[-1]) if isinstance(place, dict) else None
        if isinstance(written, str) and (written.strip() or path != ("train", "teacher", "model")):
            folder = settings.origin(draft.written(path)).folder
            place[path[-1]] = absolute_path(folder, written)
