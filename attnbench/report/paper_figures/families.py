"""Which family and size a result's model is of, called as the paper calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.models.recipes import FAMILIES
from attnbench.report.configurations import Configuration, label_without_seed
from attnbench.results import Result

TITLES = {
    "dit": "DiT",
    "moh-dit": "MoH-DiT",
    "dig": "DiG",
    "lit": "LiT",
    "mediators-dit": "Mediators-DiT",
    "pixart-sigma": "PixArt-Sigma",
    "edit": "EDiT",
    "sana": "Sana",
    "dydi-lit": "DyDi-LiT",
    "dydi-lit-matched": "DyDi-LiT, matched compute",
}
SIZES = ("S", "B", "L")
_BETWEEN = " · "  # the parts of a label


@dataclass(frozen=True, kw_only=True)
class Model:
    """How figures call a case: the series it belongs to, and its size in it."""

    family: str
    """Recipe without its size, such as `dydi-lit`."""
    series: str
    """The family's title, with what else tells the case from others, such as `DiT · guidance_scale=4.0`."""
    size: str
    """S, B or L; empty of a recipe that comes in one size."""

    @property
    def place(self) -> int:
        """Its place in the order of the paper's tables; families that are not in them come last."""
        return FAMILIES.index(self.family) if self.family in FAMILIES else len(FAMILIES)


def model_of(result: Result) -> Model:
    """Return how a result's model is called.

    A label that does not name the recipe (all cases have the same one) is the series as it stands.
    """
    config = result.case.get("model", {})
    recipe, size = str(config.get("name", "")), str(config.get("size", ""))
    family = "-".join(part for part in recipe.split("-") if part != size.lower())
    label = label_without_seed(result)
    parts = label.split(_BETWEEN)
    if recipe not in parts:
        return Model(family=family, series=label, size="")
    named = (TITLES.get(family, family) if part == recipe else part for part in parts)
    return Model(family=family, series=_BETWEEN.join(named), size=size)


def without_shared(series: Sequence[str]) -> dict[str, str]:
    """Return each series without the parts of its name that all of them share, where there are several.

    >>> without_shared(["DiT · guidance_scale=4.0", "Sana · guidance_scale=4.0"])["DiT · guidance_scale=4.0"]
    'DiT'
    """
    parts = {name: name.split(_BETWEEN) for name in series}
    if len(parts) < 2:
        return {name: name for name in parts}
    shared = set.intersection(*map(set, parts.values()))
    kept = {name: [part for part in own if part not in shared] for name, own in parts.items()}
    return {name: _BETWEEN.join(own) or name for name, own in kept.items()}


def by_series(found: Sequence[Configuration]) -> dict[str, list[tuple[Model, Configuration]]]:
    """Return the configurations of each series by ascending size, series in the order of the paper."""
    models = [(model_of(configuration.results[0]), configuration) for configuration in found]
    models.sort(key=lambda pair: pair[0].place)  # stable: others keep the order of the run
    series: dict[str, list[tuple[Model, Configuration]]] = {}
    for pair in models:
        series.setdefault(pair[0].series, []).append(pair)
    for pairs in series.values():
        pairs.sort(key=lambda pair: SIZES.index(pair[0].size) if pair[0].size in SIZES else -1)
    return series
