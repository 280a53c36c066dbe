"""What `attnbench show NAME` prints about a backend, model, suite, dataset or extractor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attnbench.console import listing, print_table
from attnbench.errors import UnknownNameError
from attnbench.specs import AttentionSpec


@dataclass(frozen=True)
class Shown:
    """Something `attnbench show` found: a title and lines of (key, value, explanation)."""

    title: str
    rows: list[tuple[str, str, str]]


def show(name: str) -> None:
    """Print what is known about a backend, model, suite, dataset or extractor of that name."""
    found = [shown for finder in (_backend, _model, _suite, _dataset, _extractor) for shown in finder(name)]
    if not found:
        raise UnknownNameError("name", name, _all_names())
    for shown in found:
        print_table(listing(shown.title, ("key", "value", "meaning"), shown.rows))


def _all_names() -> list[str]:
    from attnbench.data import list_datasets
    from attnbench.models.recipes import load_recipes
    from attnbench.plugins import registry
    from attnbench.suite_files import list_suites

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
        docs = record.options.model_json_schema().get("properties", {})
        rows = [
            ("summary", record.summary, ""),
            ("source", record.source, ""),
            ("complexity in tokens", record.complexity, ""),
            ("provided by", f"{provided.plugin} ({provided.origin})", ""),
        ]
        for key, field in record.options.model_fields.items():
            meaning = field.description or docs.get(key, {}).get("description", "")
            allowed = docs.get(key, {}).get("enum")
            meaning += f" One of {', '.join(map(str, allowed))}." if allowed else ""
            rows.append((f"option {key}", str(field.get_default()), " ".join(meaning.split())))
        yield Shown(f"backend {name}", rows)


def _model(name: str) -> Iterator[Shown]:
    from attnbench.models.macs import closed_form_macs
    from attnbench.models.recipes import load_recipes
    from attnbench.models.resolution import input_size

    config = load_recipes().get(name)
    if config is not None:
        settings = config.model_dump(mode="json", exclude={"origin"})
        settings["attention"] = _runs_of(settings["attention"])
        rows = [
            (
                key,
                value if isinstance(value, str) else json.dumps(value),
                config.origin.get(key) or config.__class__.model_fields[key].description or "",
            )
            for key, value in settings.items()
        ]
        resolution = 256 if config.input == "latent" else 16
        count = closed_form_macs(config, input_size(config, resolution))
        rows.append(
            (f"macs_paper at {resolution} px", f"{count.paper / 1e9:.4f} G", "the paper's convention")
        )
        rows.append((f"macs_full at {resolution} px", f"{count.full / 1e9:.4f} G", "every multiply-add"))
        yield Shown(f"model {name}", rows)


def _runs_of(attention: Any) -> Any:
    """Shorten one attention per block to runs of equal ones: `6 x softmax, 6 x pixart-sigma(stride=4)`."""
    if not isinstance(attention, list):
        return attention
    titles = [AttentionSpec.model_validate(spec).title for spec in attention]
    runs = [(title, len(list(run))) for title, run in itertools.groupby(titles)]
    return ", ".join(f"{count} x {title}" for title, count in runs)


def _suite(name: str) -> Iterator[Shown]:
    from attnbench.suite import load_suite
    from attnbench.suite_files import list_suites

    if name in {row.name for row in list_suites()}:
        suite = load_suite(name)
        rows = [("question", suite.question, ""), ("file", str(suite.path), "")]
        rows += [(f"cell {number}", case.label, case.id) for number, case in enumerate(suite.cases, start=1)]
        yield Shown(f"suite {name}", rows)


def _dataset(name: str) -> Iterator[Shown]:
    from attnbench.data import list_datasets

    for row in list_datasets():
        if row.name == name:
            rows = [("summary", row.summary, ""), ("source", row.source, ""), ("licence", row.licence, "")]
            yield Shown(f"dataset {name}", rows)


def _extractor(name: str) -> Iterator[Shown]:
    from attnbench.plugins import registry

    if name in registry().extractors:
        provided = registry().extractors[name]
        rows = [
            ("summary", provided.record.summary, ""),
            ("source", provided.record.source, ""),
            ("provided by", f"{provided.plugin} ({provided.origin})", ""),
            *((key, value, "") for key, value in provided.record.notes.items()),
        ]
        yield Shown(f"extractor {name}", rows)
