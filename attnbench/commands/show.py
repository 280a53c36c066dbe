"""What `attnbench show NAME` prints about a backend, model, suite, dataset or extractor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from attnbench.console import listing, print_table
from attnbench.contract import BackendOptions
from attnbench.errors import UnknownNameError
from attnbench.specs import AttentionSpec, ModelConfig

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Something `attnbench show` found: what is known about it, and its settings with their meaning."""

    title: str
    facts: Facts
    settings: tuple[tuple[str, ...], ...] = ()
    columns: tuple[str, ...] = ("setting", "value", "meaning")
    numeric: tuple[str, ...] = ()
    """Columns that stand to the right."""


def show(name: str) -> None:
    """Print what is known about a backend, model, suite (also a file), dataset or extractor of that name."""
    found = [shown for finder in (_backend, _model, _suite, _dataset, _extractor) for shown in finder(name)]
    if not found:
        raise UnknownNameError("name", name, _all_names())
    for shown in found:
        print_table(listing(shown.title, ("what", "value"), shown.facts))
        if shown.settings:
            print_table(listing("", shown.columns, shown.settings, numeric=shown.numeric))


def _all_names() -> list[str]:
    from attnbench.data import list_datasets
    from attnbench.models.recipes import load_recipes
    from attnbench.plugins import registry
    from attnbench.suite.files import list_suites

    known = registry()
    return [
        *known.backends,
        *known.extractors,
        *load_recipes(),
        *(s.name for s in list_suites()),
        *(d.name for d in list_datasets()),
    ]


def _backend(name: str) -> Iterator[Shown]:
    from attnbench.plugins import registry

    if name in registry().backends:
        provided = registry().backends[name]
        record = provided.record
        yield Shown(
            title=f"backend {name}",
            facts=(
                ("summary", record.summary),
                ("source", record.source),
                ("complexity in tokens", record.complexity),
                ("provided by", f"{provided.plugin} ({provided.origin})"),
            ),
            settings=tuple(_options(record.options)),
            columns=("option", "default", "meaning"),
        )


def _options(options: type[BackendOptions]) -> Iterator[tuple[str, str, str]]:
    """Yield a backend's options with their defaults and meanings, and the values of a choice."""
    schema = options.model_json_schema().get("properties", {})
    for key, option in options.model_fields.items():
        meaning = option.description or schema.get(key, {}).get("description", "")
        allowed = schema.get(key, {}).get("enum")
        meaning += f" One of {', '.join(map(str, allowed))}." if allowed else ""
        value = "(must be set)"
        if not option.is_required():
            value = _plain(to_jsonable_python(option.get_default(call_default_factory=True), fallback=str))
        yield key, value, " ".join(meaning.split())


def _model(name: str) -> Iterator[Shown]:
    from attnbench.models.macs import closed_form_macs
    from attnbench.models.recipes import load_recipes
    from attnbench.models.resolution import input_size

    config = load_recipes().get(name)
    if config is not None:
        resolution = 256 if config.input == "latent" else 16
        count = closed_form_macs(config, input_size(config, resolution))
        printed = [
            f"{table.replace('table', 'Table ')}: {'no GFLOPs' if gflops is None else f'{gflops:.2f} G'}"
            for table, gflops in config.published.items()
        ]
        yield Shown(
            title=f"model {name}",
            facts=(
                ("summary", config.summary),
                ("source", config.source),
                (f"MACs, paper's count, {resolution} px", f"{count.paper / 1e9:.4f} G"),
                (f"MACs, full count, {resolution} px", f"{count.full / 1e9:.4f} G: every multiply-add"),
                ("printed in arXiv:2601.13683", ", ".join(printed)),
            ),
            settings=tuple(_settings(config)),
            columns=("setting", "value", "where it comes from, or what it is"),
        )


def _settings(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """Yield the settings of a recipe, each with its origin where the recipe states one."""
    values = config.model_dump(mode="json", exclude={"name", "summary", "source", "published", "origin"})
    values["attention"] = _runs_of(values["attention"])
    for key, value in values.items():
        meaning = config.origin.get(key) or type(config).model_fields[key].description or ""
        yield key, _plain(value), " ".join(meaning.split())


def _plain(value: Any) -> str:
    """Return a setting as a suite file has it, a mapping without what is null."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items() if each is not None)
    return value if isinstance(value, str) else json.dumps(value)


def _runs_of(attention: Any) -> Any:
    """Shorten one attention per block to runs of equal ones: `6 x softmax, 6 x pixart-sigma(stride=4)`."""
    if not isinstance(attention, list):
        return AttentionSpec.model_validate(attention).title
    titles = [AttentionSpec.model_validate(spec).title for spec in attention]
    runs = [(title, len(list(run))) for title, run in itertools.groupby(titles)]
    return ", ".join(f"{count} x {title}" for title, count in runs)


def _suite(name: str) -> Iterator[Shown]:
    from attnbench.commands.show_suite import CASE_COLUMNS, case_rows, suite_facts
    from attnbench.suite.files import list_suites
    from attnbench.suite.loading import load_suite

    if name in {row.name for row in list_suites()} or name.endswith((".yaml", ".yml")):
        suite = load_suite(name)
        yield Shown(
            title=f"suite {suite.name}",
            facts=suite_facts(suite),
            settings=case_rows(suite),
            columns=CASE_COLUMNS,
            numeric=CASE_COLUMNS[1:],
        )


def _dataset(name: str) -> Iterator[Shown]:
    from attnbench.data import list_datasets

    for row in list_datasets():
        if row.name == name:
            facts = (("summary", row.summary), ("source", row.source), ("licence", row.licence))
            yield Shown(title=f"dataset {name}", facts=facts)


def _extractor(name: str) -> Iterator[Shown]:
    from attnbench.plugins import registry

    if name in registry().extractors:
        provided = registry().extractors[name]
        yield Shown(
            title=f"extractor {name}",
            facts=(
                ("summary", provided.record.summary),
                ("source", provided.record.source),
                ("provided by", f"{provided.plugin} ({provided.origin})"),
                *provided.record.notes.items(),
            ),
        )
