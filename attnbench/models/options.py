"""From an attention's name and options in a recipe to its backend and validated options."""

from __future__ import annotations

import json

from pydantic import ValidationError

from attnbench.contract import AttentionBackend, BackendOptions
from attnbench.errors import UserInputError
from attnbench.plugins import Registry, registry
from attnbench.problems import problems_in
from attnbench.specs import AttentionSpec, ModelConfig
from attnbench.yaml_source import show_path


def resolve_attention(spec: AttentionSpec) -> tuple[AttentionBackend, BackendOptions]:
    """Return the backend and its options; raises UnknownNameError or UserInputError naming the key."""
    backend = registry().backend(spec.name)
    try:
        # through JSON, so that a list from YAML or Python may fill a tuple
        return backend, backend.options.model_validate_json(json.dumps(spec.options))
    except ValidationError as error:
        problems = problems_in(error, backend.options, spec.options)
        told = "; ".join(f"{show_path(p.path)}: {p.message}" for p in problems)
        raise UserInputError(f"options of backend {spec.name}: {told}") from error


def with_all_options(model: ModelConfig, registry: Registry) -> ModelConfig:
    """Return the model with every backend option written out, so that its content hash says everything.

    The label keeps what the user wrote.
    """

    def complete(spec: AttentionSpec) -> AttentionSpec:
        options = registry.backend(spec.name).options.model_validate_json(json.dumps(spec.options))
        full = options.model_dump(mode="json")
        return spec.model_copy(update={"options": full, "label": spec.title}) if full else spec

    several = model.attention if isinstance(model.attention, list) else None
    chosen = [complete(spec) for spec in several] if several else complete(model.attention_at(0))
    return model.model_copy(update={"attention": chosen})
