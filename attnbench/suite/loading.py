"""YAML -> Suite -> Cases: every check of what a user writes into a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attnbench.models.recipes import load_recipes
from attnbench.problems import SET_BY_RECIPE
from attnbench.specs import NOISE, Case, TrainSpec
from attnbench.suite import matrix
from attnbench.suite.distinct import repetitions, shared_measurements
from attnbench.suite.exceptions import apply_exceptions, read_exceptions
from attnbench.suite.excluding import without_excluded
from attnbench.suite.extending import read_suite
from attnbench.suite.files import find_suite, list_suites, shipped_folder
from attnbench.suite.overrides import PATH_SETTINGS, absolute_override, override
from attnbench.suite.resolving import Findings, Resolver
from attnbench.suite.schema import SuiteSpec
from attnbench.suite.teachers import with_teachers

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
            for warning in case.train.once("warnings", partial(_warnings_of, case.train)):
                found.setdefault(warning, []).append(case.label)
        return found


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
    findings = Findings(settings)
    drafts, wrong_exclusions = without_excluded(list(matrix.drafts(axes)), axes, settings)
    findings.add([*problems, *wrong_rules, *wrong_exclusions])
    findings.add(apply_exceptions(rules, drafts))
    resolver = Resolver(settings=settings, findings=findings)
    resolved = [(draft, resolver.case(draft)) for draft in drafts]
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


def _warnings_of(train: TrainSpec) -> tuple[str, ...]:
    return tuple(train.warnings())


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
