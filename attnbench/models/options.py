"""From an attention's name and options in a recipe to its backend and validated options."""

from __future__ import annotations

from pydantic import ValidationError

from attnbench.contract import AttentionBackend, BackendOptions
from attnbench.errors import UserInputError, did_you_mean
from attnbench.plugins import registry
from attnbench.specs import AttentionSpec


def resolve_attention(spec: AttentionSpec) -> tuple[AttentionBackend, BackendOptions]:
    """Return the backend and its options; raises UnknownNameError or UserInputError naming the key."""
    backend = registry().backend(spec.name)
    try:
        return backend, backend.options.model_validate(spec.options)
    except ValidationError as error:
        raise UserInputError(
            f"options of backend {spec.name}: " + "; ".join(_explain(backend, e) for e in error.errors())
        ) from error


def _explain(backend: AttentionBackend, error: dict) -> str:  # type: ignore[type-arg]
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        allowed = sorted(backend.options.model_fields)
        return f"unknown option {key!r}{did_you_mean(key, allowed)}; allowed: {', '.join(allowed) or '(none)'}"
    return f"{key}: {error['msg']}, got {error['input']!r}"
