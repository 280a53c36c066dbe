"""Which rows of a table a case stands for: by its recipe, or by its attention in another skeleton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.report.paper.published import PaperRow, PaperTable
from attnbench.specs import AttentionSpec, ModelConfig

Settings = Mapping[str, Any]
Recipes = Mapping[str, ModelConfig]

DEFAULTS: Mapping[str, dict[str, Any]] = {
    "dydila": {
        "mode": "token",
        "query_key": "shared",
        "kernel": "dynamic",
        "dwc": "reparameterised",
        "lambda_init": 0.01,
        "lambda_init_last": None,
    },
    "linear": {"qk_norm": False},
}
"""Defaults of the options of an attention that tell rows apart; backends themselves need torch."""
_SKELETON = (
    "depth", "dim", "num_heads", "patch_size", "input", "in_channels", "ffn", "position_embedding",
    "learned_variance", "class_dropout", "stream_conv",
)  # fmt: skip
_OF_SIZE = ("num_projectors", "num_kernels", "num_factors")


def attentions(model: Settings) -> list[Settings]:
    """Return the attention of every block as stored in a case, or one that stands for all."""
    found = model.get("attention", [])
    return [found] if isinstance(found, Mapping) else list(found)


def has_attention_of(model: Settings, recipe: ModelConfig) -> bool:
    """Tell whether a model's blocks have the recipe's attentions, in every option that the recipe states."""
    ours, theirs = attentions(model), _specs(recipe)
    length = max(len(ours), len(theirs))
    if any(len(some) not in (1, length) for some in (ours, theirs)):
        return False
    return all(
        ours[i % len(ours)].get("name") == theirs[i % len(theirs)].name
        and not _options_that_differ(ours[i % len(ours)], theirs[i % len(theirs)], None)
        for i in range(length)
    )


def rows_by_recipe(model: Settings, table: PaperTable) -> list[int]:
    """Return the rows that the model's recipe stands for; Table 3 has DiT-S twice."""
    return [i for i, row in enumerate(table.rows) if row.recipe == model.get("name")]


def rows_by_attention(model: Settings, table: PaperTable, recipes: Recipes) -> list[int]:
    """Return the rows of the table's smallest size whose attention the model has.

    Told by the backend's name and the options that tell the rows of this table apart. A recipe that mixes
    softmax with another attention is told by the other one.
    """
    names = {str(spec.get("name")) for spec in attentions(model)}
    if len(names - {"softmax"}) > 1:
        return []
    return [
        i
        for i, row in enumerate(table.rows)
        if row.size == table.sizes[0] and _attends_alike(model, names, recipes[row.recipe], table.told_by)
    ]


def other_differences(model: Settings, row: PaperRow, recipes: Recipes) -> list[str]:
    """Return in what a model's attention is not that of a row's recipe, apart from what size decides."""
    ours, theirs = attentions(model), _specs(recipes[row.recipe])
    told = [spec for spec in theirs if spec.name != "softmax"] or theirs
    own = [spec for spec in ours if spec.get("name") != "softmax"] or ours
    apart = _options_that_differ(own[0], told[0], None)
    if told[0].name in DEFAULTS:  # what its recipe leaves at its default
        apart |= _options_that_differ(own[0], told[0], tuple(DEFAULTS[told[0].name]))
    said = [
        f"{key} {_shown(got)} for {_shown(wanted)}"
        for key, (got, wanted) in apart.items()
        if key not in _OF_SIZE
    ]
    if len(theirs) > 1 and len(told) < len(theirs) and len(own) == len(ours):
        said.append(f"in every block for {len(told)} of {len(theirs)}")
    return said


def departures(case: Settings, row: PaperRow, table: PaperTable, recipes: Recipes) -> list[str]:
    """Return where a case that stands for a row by its recipe is not as the recipe and section 4.1 say."""
    model, recipe = case.get("model", {}), recipes[row.recipe]
    wanted = {f"model.{name}": recipe.model_dump(mode="json")[name] for name in _SKELETON}
    found = [
        f"{key} {_shown(got)} for {_shown(value)}"
        for key, value in {**wanted, **table.protocol}.items()
        if not _agree(got := _look_up(case, key), value)
    ]
    for own, stated in zip(attentions(model), _specs(recipe), strict=False):
        found += [
            f"{stated.name}.{key} {_shown(got)} for {_shown(value)}"
            for key, (got, value) in _options_that_differ(own, stated, None).items()
        ]
    return list(dict.fromkeys(found))


def _attends_alike(model: Settings, names: set[str], recipe: ModelConfig, told_by: Sequence[str]) -> bool:
    specs = _specs(recipe)
    theirs = {spec.name for spec in specs}
    characteristic = theirs - {"softmax"} or theirs
    if names != theirs and names != characteristic:
        return False
    told = next(spec for spec in specs if spec.name in characteristic)
    own = next(spec for spec in attentions(model) if spec.get("name") in characteristic)
    return told.name != "dydila" or not _options_that_differ(own, told, told_by)


def _options_that_differ(
    own: Settings, stated: AttentionSpec, told_by: Sequence[str] | None
) -> dict[str, tuple[Any, Any]]:
    """Return the options that both have and that differ; those of `told_by` also where a default is meant.

    An option that a result does not hold did not exist when it was written.
    """
    options = own.get("options", {})
    wanted = dict(stated.options)
    if told_by is not None:
        wanted = {key: wanted.get(key, DEFAULTS[stated.name][key]) for key in told_by}
    return {
        key: (options[key], value)
        for key, value in wanted.items()
        if key in options and not _agree(options[key], value)
    }


def _specs(recipe: ModelConfig) -> list[AttentionSpec]:
    return recipe.attention if isinstance(recipe.attention, list) else [recipe.attention]


def _look_up(case: Settings, key: str) -> Any:
    """Return a setting by its dotted key; what a result does not hold counts as agreeing."""
    found: Any = case
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ...
        found = found[part]
    return found


def _agree(got: Any, wanted: Any) -> bool:
    if isinstance(got, Mapping) and isinstance(wanted, Mapping):
        return all(got[key] == value for key, value in wanted.items() if key in got)
    return got is ... or got == wanted


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
