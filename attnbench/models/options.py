"""From an attention's name and options in a recipe to its backend and validated options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from attnbench.contract import AttentionBackend, BackendOptions
from attnbench.errors import UserInputError
from attnbench.plugins import Registry, registry
from attnbench.problems import Problem, problems_in
from attnbench.specs import AttentionSpec, ModelConfig
from attnbench.yaml_source import show_path


def resolve_attention(spec: AttentionSpec) -> tuple[AttentionBackend, BackendOptions]:
    """Return the backend and its options; raises UnknownNameError or UserInputError naming the key."""
    backend = registry().backend(spec.name)
    return backend, options_of(backend, spec.options)


def options_of(backend: AttentionBackend, options: Mapping[str, Any]) -> BackendOptions:
    """Return the options validated, defaults filled in; raises UserInputError naming every wrong key."""
    checked, problems = read_options(backend, options)
    if checked is None:
        told = "; ".join(": ".join(filter(None, (show_path(p.path), p.message))) for p in problems)
        raise UserInputError(f"options of backend {backend.name}: {told}")
    return checked


def read_options(
    backend: AttentionBackend, options: Mapping[str, Any]
) -> tuple[BackendOptions | None, list[Problem]]:
    """Return the options validated and no problem, or None and what is wrong with them."""
    try:
        # through JSON, so that a list from YAML or Python may fill a tuple
        text = json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        return None, [Problem((), f"must be plain JSON data: {error}")]
    try:
        return backend.options.model_validate_json(text), []
    except ValidationError as error:
        return None, problems_in(error, backend.options, dict(options))


def with_all_options(model: ModelConfig, registry: Registry) -> ModelConfig:
    """Return the model with every backend option written out, so that its content hash says everything.

    The label keeps what the user wrote.
    """

    def complete(spec: AttentionSpec) -> AttentionSpec:
        full = options_of(registry.backend(spec.name), spec.options).model_dump(mode="json")
        return spec.model_copy(update={"options": full, "label": spec.title}) if full else spec

    several = model.attention if isinstance(model.attention, list) else None
    chosen = [complete(spec) for spec in several] if several else complete(model.attention_at(0))
    return model.model_copy(update={"attention": chosen})
