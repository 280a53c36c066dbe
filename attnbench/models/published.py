"""Which recipes stand for which rows of arXiv:2601.13683, and what is printed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.models.recipes import load_recipes
from attnbench.specs import ModelConfig, Table

TABLES: tuple[str, ...] = get_args(Table)


def table_resolution(table: str) -> int:
    """Return the side in pixels of the images of a table: Table 2 is 512 px, all others 256."""
    return 512 if table == "table2" else 256


def recipes_of(table: str) -> list[str]:
    """Return the recipes that stand for the rows of a table: small ones first, then in its order."""
    rows = [config for config in load_recipes().values() if table in config.published]
    return [config.name for config in sorted(rows, key=lambda config: "SBL".index(config.size))]


def published_gflops(config: ModelConfig, resolution: int) -> float | None:
    """Return the GFLOPs (10^9 multiply-adds) printed for a recipe at a resolution in pixels, or None."""
    printed = {
        value
        for table, value in config.published.items()
        if value is not None and table_resolution(table) == resolution
    }
    if len(printed) > 1:
        raise UserInputError(f"recipe {config.name} states different GFLOPs for {resolution} px: {printed}")
    return next(iter(printed), None)


def expand(names: Iterable[str]) -> list[str]:
    """Replace `table1` to `table8` by the recipes of that table; every name once, in order.

    Raises UnknownNameError for a name that is neither a recipe nor a table.
    """
    recipes = load_recipes()
    found: list[str] = []
    for name in names:
        if name not in TABLES and name not in recipes:
            raise UnknownNameError("model recipe or table", name, [*recipes, *TABLES])
        found += recipes_of(name) if name in TABLES else [name]
    return list(dict.fromkeys(found))
