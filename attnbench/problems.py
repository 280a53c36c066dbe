"""What is wrong with a tree of settings, as sentences a user can act on instead of a library's report."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from attnbench.errors import UserInputError, did_you_mean
from attnbench.specs import ABOUT_A_SETTING, ModelConfig
from attnbench.yaml_source import KeyPath, show_value

# of a model: no user writes them
SET_BY_RECIPE = {"name", "summary", "source", "size", "published", "origin"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the setting it is about."""

    path: KeyPath
    message: str


def problems_in(error: ValidationError, schema: type[BaseModel], data: Any) -> list[Problem]:
    """Translate pydantic's errors about `data`; what the branches of a union say becomes one problem."""
    found = [(_path_in(data, item["loc"], item["type"]), item) for item in error.errors(include_url=False)]
    said: dict[KeyPath, list[_Said]] = {}
    for path, item in found:
        in_union = path != item["loc"]
        if in_union and any(len(other) > len(path) and other[: len(path)] == path for other, _ in found):
            continue  # another branch of the union fits better: it fails only further inside
        sentence = _say(path, item, schema, data)
        said.setdefault(sentence.path, []).append(sentence)
    return [Problem(path, _joined(parts)) for path, parts in said.items()]


def unknown_key(path: KeyPath, allowed: Collection[str]) -> Problem:
    """Return the problem of a key that does not exist."""
    key = str(path[-1])
    listed = ", ".join(sorted(allowed)) or "(none)"
    return Problem(path, f"unknown key {key!r}{did_you_mean(key, allowed)}; allowed: {listed}")


def settings_at(schema: type[BaseModel], path: KeyPath, data: Any = None) -> dict[str, type[BaseModel]]:
    """Return the settings that may stand in the mapping at `path`, with the model that owns each.

    Where several models may stand there, `data` (the whole tree) tells which by its `name`.
    """
    models = [schema]
    for part in path:
        data = data.get(part) if isinstance(data, Mapping) else None
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in models_in(field.annotation)]
    if isinstance(data, Mapping) and len(models) > 1:
        models = [m for m in models if m.model_fields["name"].default == data.get("name")] or models
    return {name: model for model in models for name in model.model_fields}


def allowed_keys(schema: type[BaseModel], path: KeyPath, data: Any = None) -> set[str]:
    """Return the keys a user may write in the mapping at `path`."""
    owners = settings_at(schema, path, data)
    if ModelConfig in owners.values():
        return (set(owners) - SET_BY_RECIPE) | ({"recipe"} if path else set())
    return set(owners)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models inside a type such as `list[A] | B`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def _path_in(data: Any, loc: Iterable[int | str], kind: str) -> KeyPath:
    """Drop the names of union branches, which pydantic mixes into its locations."""
    parts, path = list(loc), []
    for number, part in enumerate(parts):
        here = isinstance(data, dict) and part in data
        here = here or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if here:
            data = data[part]
        if here or (kind == "missing" and number == len(parts) - 1):
            path.append(part)
    return tuple(path)


@dataclass(frozen=True)
class _Said:
    """One error: where it belongs, what was expected, and what was got (if that says anything)."""

    path: KeyPath
    expected: str
    got: str = ""


def _say(path: KeyPath, item: Any, schema: type[BaseModel], data: Any) -> _Said:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _Said(path, unknown_key(path, allowed_keys(schema, path[:-1], data)).message)
    if kind == "missing":
        return _Said(path, _missing(path, schema, data))
    if kind == "union_tag_not_found":
        return _Said((*path, "name"), f"is missing; allowed: {', '.join(_names(schema, path))}")
    if kind == "union_tag_invalid":
        return _one_of((*path, "name"), context["tag"], _names(schema, path))
    if kind == "literal_error":
        return _one_of(path, value, [word.strip("'") for word in re.split(r", | or ", context["expected"])])
    if kind == ABOUT_A_SETTING:
        return _Said((*path, context["setting"]), context["message"])
    if kind == "value_error":
        return _Said(path, str(context["error"]))
    return _Said(path, _expectation(kind, item["msg"]), show_value(value))


def _one_of(path: KeyPath, got: Any, allowed: list[str]) -> _Said:
    listed = " or ".join(filter(None, [", ".join(allowed[:-1]), allowed[-1]]))
    return _Said(path, f"must be {listed}", show_value(got) + did_you_mean(str(got), allowed))


def _missing(path: KeyPath, schema: type[BaseModel], data: Any) -> str:
    owner = settings_at(schema, path[:-1], data).get(str(path[-1]))
    about = owner.model_fields[str(path[-1])].description if owner else None
    return f"is missing ({about.rstrip('.')})" if about else "is missing"


def _expectation(kind: str, message: str) -> str:
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping"
    if kind == "path_type":
        return "must be a path"
    if kind == "too_short":
        return "must be a list with at least one item"
    message = message.replace("a valid integer", "an integer").replace("a valid ", "a ")
    return re.sub(r"^\w+ should ", "must ", message)


def _joined(parts: list[_Said]) -> str:
    """Say what all branches of a union expected as one sentence."""
    if len(parts) == 1:
        expected = parts[0].expected
    else:
        unique = dict.fromkeys(part.expected.removeprefix("must be ") for part in parts)
        expected = "must be " + " or ".join(unique)
    return expected + (f", got {parts[0].got}" if parts[0].got else "")


def _names(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the names that tell the models of a discriminated union apart."""
    annotation: Any = schema
    for part in path:
        if isinstance(part, str):
            annotation = annotation.model_fields[part].annotation
    return [model.model_fields["name"].default for model in models_in(annotation)]


def json_object(text: str) -> dict[str, Any]:
    """Return what `--options` says: a JSON object; raises UserInputError for anything else."""
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserInputError(
            f"--options takes a JSON object, got {text!r} ({error}); e.g. '{{\"num_agents\": 4}}'"
        ) from error
    if not isinstance(options, dict):
        raise UserInputError(f"--options takes a JSON object, got {text!r}; e.g. '{{\"num_agents\": 4}}'")
    return options
