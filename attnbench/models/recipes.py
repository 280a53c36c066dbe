"""Named model sizes: one YAML file per family, its `shared` settings merged into each of its `models`.

A family that `extends` another takes that family's shared settings first.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.problems import problems_in
from attnbench.specs import ModelConfig
from attnbench.yaml_source import show_path

# files of recipes/, in the order of the paper's tables
FAMILIES = (
    "shell",
    "dit",
    "moh-dit",
    "dig",
    "lit",
    "mediators-dit",
    "pixart-sigma",
    "edit",
    "sana",
    "ablations",
    "dydi-lit",
    "dydi-lit-matched",
    "ddt",
    "diffmoe",
    "tiny",
    # what is in no table
    "linear-dit",
    "later-dit",
)


def load_recipes() -> dict[str, ModelConfig]:
    """Return every shipped recipe by name, families and sizes in reading order."""
    return {name: ModelConfig.model_validate(settings) for name, settings in _shelf().items()}


def recipe(name: str) -> ModelConfig:
    """Return one recipe; raises UnknownNameError with the nearest spelling."""
    return resolve(name, {})


def resolve(name: str, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return a recipe with some settings replaced.

    Raises UnknownNameError for the recipe and UserInputError for a setting that does not exist or fit.
    """
    settings = merge(name, overrides)
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError as error:
        found = problems_in(error, ModelConfig, settings)
        lines = [f"model {name}: {show_path(problem.path)}: {problem.message}" for problem in found]
        raise UserInputError("\n".join(lines)) from error


def merge(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings with `overrides` merged in, not yet checked.

    Mappings merge key by key, with one exception: an attention that states its name replaces the
    recipe's as a whole, because the options of one backend mean nothing to another.
    """
    shelf = _shelf()
    if name not in shelf:
        raise UnknownNameError("model recipe", name, shelf)
    settings: dict[str, Any] = copy.deepcopy(dict(shelf[name]))
    attention = overrides.get("attention")
    if attention is not None and not (isinstance(attention, Mapping) and "name" not in attention):
        settings.pop("attention", None)
    return _merged(settings, overrides)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        mappings = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if mappings else copy.deepcopy(value)
    return result


@functools.cache
def _shelf() -> Mapping[str, Mapping[str, Any]]:
    """Read the recipe files once; what this returns is copied before anybody changes it."""
    folder = resources.files("attnbench.models") / "recipes"
    families = {
        name: YAML(typ="safe").load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in FAMILIES
    }
    shelf: dict[str, Mapping[str, Any]] = {}
    for family in families.values():
        shared = _shared(families, family)
        for name, settings in family["models"].items():
            shelf[name] = {"name": name, **_merged(shared, settings)}
    return shelf


def _shared(families: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a family's models share: its own settings merged into those of the family it extends."""
    below = _shared(families, families[family["extends"]]) if "extends" in family else {}
    return _merged(below, family["shared"])
