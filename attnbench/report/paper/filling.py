"""Results put into the rows and columns of a table of the paper; nothing is chosen in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from attnbench.models.recipes import load_recipes
from attnbench.report.configurations import seed_of
from attnbench.report.paper.conditions import MEANT_TO_DIFFER, scored_settings
from attnbench.report.paper.published import PaperRow, PaperTable
from attnbench.report.paper.rows import (
    Recipes,
    departures,
    has_attention_of,
    other_differences,
    rows_by_attention,
    rows_by_recipe,
)
from attnbench.results import Result
from attnbench.specs import content_hash

PAPERS_DATA = ("prepared", "image-folder")
PAPERS_EXTRACTOR = "inception-tf"
_MOST_NAMED = 3
_SEED = re.compile(r" · seed=\d+$")


@dataclass(frozen=True)
class Taken:
    """A result and the run it is from."""

    run: str
    result: Result

    @property
    def label(self) -> str:
        """Run and case."""
        return f"{self.run}: {self.result.label}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is set against the published values, one line below each row: one data set and feature network."""

    recipe: str
    """Whose skeleton the rows' attentions were put into; empty: each row is its own recipe."""
    data: str
    """Name and side of the data set, such as `digits 8 px`."""
    extractor: str
    scale: str = ""
    """Guidance scale, where it is none of the table's; empty: that of the column."""
    comparable: bool
    """Whether its metrics are those of the paper: by recipe, of its image size, on its feature network."""

    @property
    def what(self) -> str:
        """What the line is, in full."""
        models = f"attentions in {self.recipe}" if self.recipe else "the paper's recipes"
        return f"{models} on {self.data}, scored by {self.extractor}"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What ran for one row, line and guidance scale: one setting over its seeds, or several settings."""

    settings: tuple[tuple[Taken, ...], ...]
    """Results by setting; of one setting, each seed may stand in several runs."""

    @property
    def taken(self) -> list[Taken]:
        """Every result."""
        return [one for same in self.settings for one in same]


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A table of the paper and what ran for it."""

    table: PaperTable
    lines: tuple[Line, ...]
    slots: Mapping[tuple[int, Line, str], Slot]
    """By row, line and guidance scale of the column."""
    left_out: Mapping[str, tuple[str, ...]]
    """What stands in no cell, by the reason."""
    remarks: tuple[str, ...]
    """Which attention stands for which row, and in what cases depart from the paper."""

    def title(self, line: Line) -> str:
        """Return what a line is called: its data, and what tells it from other lines on the same."""
        if line.comparable:
            return "measured"
        peers = [other for other in self.lines if other.data == line.data]
        told = (
            line.data,
            line.recipe or "the paper's recipes" if len({other.recipe for other in peers}) > 1 else "",
            line.extractor if len({other.extractor for other in peers}) > 1 else "",
            f"CFG={line.scale}" if line.scale else "",
        )
        return ", ".join(filter(None, told))

    @property
    def empty(self) -> bool:
        """Whether no result stands in any row."""
        return not self.slots


@dataclass
class _Draft:
    places: dict[tuple[int, Line, str], list[Taken]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    stands_for: dict[Line, dict[str, None]] = field(default_factory=dict)
    departures: dict[str, dict[str, None]] = field(default_factory=dict)

    def leave_out(self, taken: Taken, why: str) -> None:
        """Note that a result stands nowhere."""
        self.left_out.setdefault(why, []).append(taken.label)


def fill(
    table: PaperTable,
    runs: Mapping[str, Sequence[Result]],
    full: Recipes | None = None,
) -> Filling:
    """Put the results of some runs, by name, into a table of the paper.

    A case stands in a row by its recipe where its attention is the recipe's, else by its attention alone.
    `full` are the recipes with every option written out, so that an option that no recipe states is seen to
    depart, too.
    """
    recipes = load_recipes()
    draft = _Draft()
    for run, results in runs.items():
        for line, taken, rows in by_line(table, run, results, recipes, draft.leave_out):
            _place(table, line, taken, rows, draft)
            if not line.recipe:
                for departure in departures(taken.result.case, table.rows[rows[0]], table, full or recipes):
                    draft.departures.setdefault(departure, {})[taken.label] = None
    _keep_the_closest(table, recipes, draft)
    for (row, line, _), placed in draft.places.items():
        if line.recipe:
            for taken in placed:
                _note_attention(table, line, taken, row, recipes, draft)
    places = _without_side_columns(draft, table)
    lines = dict.fromkeys(line for _, line, _ in places)
    return Filling(
        table=table,
        lines=tuple(sorted(lines, key=lambda line: not line.comparable)),
        slots={place: Slot(settings=_by_setting(found)) for place, found in places.items()},
        left_out={why: _over_seeds(labels) for why, labels in draft.left_out.items()},
        remarks=(*_remarks(draft, lines), *_unlike_rows(lines, places)),
    )


def scale_text(scale: float) -> str:
    """Return a guidance scale as the paper's columns have it: `4.0`, `1.25`."""
    return f"{scale:.1f}" if scale == round(scale, 1) else f"{scale:g}"


def by_line(
    table: PaperTable,
    run: str,
    results: Sequence[Result],
    recipes: Recipes,
    leave_out: Callable[[Taken, str], object] = lambda _taken, _why: None,
) -> Iterator[tuple[Line, Taken, list[int]]]:
    """Yield every result that stands in a row, with the line and rows it stands in, whatever its guidance."""
    swapped = {_name(r) for r in results if _name(r) in recipes and not _is_recipe(r, recipes)}
    for result in results:
        taken, model = Taken(run, result), result.case.get("model")
        if not isinstance(model, Mapping):
            leave_out(taken, "settings are not stored")
            continue
        by_recipe = [] if _name(result) in swapped else rows_by_recipe(model, table)
        rows = by_recipe or rows_by_attention(model, table, recipes)
        if rows:
            yield _line(table, result, by_recipe=bool(by_recipe)), taken, rows
        else:
            leave_out(taken, "neither recipe nor attention is a row of this table")


def _line(table: PaperTable, result: Result, *, by_recipe: bool) -> Line:
    data, evaluate = result.case.get("data", {}), result.case.get("evaluate", {})
    side = data.get("image_size") or (8 if data.get("name") == "digits" else None)
    protocol = evaluate.get("protocol", "adm")
    extractor = str(evaluate.get("extractor", "?"))
    return Line(
        recipe="" if by_recipe else _name(result),
        data=f"{data.get('name', '?')} {side} px" if side else str(data.get("name", "?")),
        extractor=extractor if protocol == "adm" else f"{protocol} {extractor}",
        comparable=by_recipe
        and data.get("name") in PAPERS_DATA
        and side == table.resolution
        and extractor == PAPERS_EXTRACTOR
        and protocol == "adm",
    )


def _place(table: PaperTable, line: Line, taken: Taken, rows: Sequence[int], draft: _Draft) -> None:
    scale = scale_text(float(taken.result.case.get("sample", {}).get("guidance_scale", 1.0)))
    if line.recipe or scale in table.scales:
        for row in rows:
            draft.places.setdefault((row, line, scale), []).append(taken)
    else:
        columns = " and ".join(table.scales)
        draft.leave_out(taken, f"guidance {scale}, the columns are {columns}")


def most_alike(placed: Sequence[Taken], row: PaperRow, recipes: Recipes) -> list[Taken]:
    """Return those of some attentions for one row that differ least from its recipe's."""
    apart = [len(other_differences(one.result.case["model"], row, recipes)) for one in placed]
    return [one for one, n in zip(placed, apart, strict=True) if n == min(apart)]


def _keep_the_closest(table: PaperTable, recipes: Recipes, draft: _Draft) -> None:
    """Of attentions that stand for one row, keep those least apart from its recipe's; name the others.

    A suite of the rungs of Table 4 holds several that are Table 5's token-wise paradigm, one of them exactly.
    """
    kept: set[int] = set()
    beaten: dict[int, tuple[Taken, str]] = {}
    for (index, line, scale), placed in draft.places.items():
        row = table.rows[index]
        alike = most_alike(placed, row, recipes) if line.recipe else placed
        draft.places[index, line, scale] = alike
        kept |= {id(one) for one in alike}
        beaten |= {id(one): (one, row.title) for one in placed if id(one) not in kept}
    for number, (one, title) in beaten.items():
        if number not in kept:
            draft.leave_out(one, f"another case's attention is more like that of {title}")


def _without_side_columns(draft: _Draft, table: PaperTable) -> dict[tuple[int, Line, str], list[Taken]]:
    """Give scaled-down lines whose guidance is none of the table's every column, and say so in their title.

    Such numbers compare with nothing published; their order may be set against either column's. A line that
    has some of the table's scales keeps to these.
    """
    fitting = {line for _, line, scale in draft.places if scale in table.scales}
    places: dict[tuple[int, Line, str], list[Taken]] = {}
    for (row, line, scale), taken in draft.places.items():
        if scale in table.scales:
            places[row, line, scale] = taken
        elif line in fitting:
            for one in taken:
                draft.leave_out(one, f"guidance {scale}, the columns are {' and '.join(table.scales)}")
        else:
            at = Line(
                recipe=line.recipe, data=line.data, extractor=line.extractor, scale=scale, comparable=False
            )
            for column in table.scales:
                places[row, at, column] = taken
    return places


def _by_setting(found: Sequence[Taken]) -> tuple[tuple[Taken, ...], ...]:
    groups: dict[str, list[Taken]] = {}
    for one in found:
        groups.setdefault(content_hash(scored_settings(one.result.case)), []).append(one)
    return tuple(tuple(sorted(group, key=lambda one: seed_of(one.result))) for group in groups.values())


def _note_attention(
    table: PaperTable, line: Line, taken: Taken, index: int, recipes: Recipes, draft: _Draft
) -> None:
    row = table.rows[index]
    differs = other_differences(taken.result.case["model"], row, recipes)
    but = f" ({', '.join(differs)})" if differs else ""
    label = _SEED.sub("", taken.result.label)
    draft.stands_for.setdefault(line, {})[f"{label} for {row.title}{but}"] = None


def _remarks(draft: _Draft, lines: Mapping[Line, None]) -> Iterator[str]:
    shown = {(line.recipe, line.data, line.extractor) for line in lines}
    for line, said in draft.stands_for.items():
        if (line.recipe, line.data, line.extractor) in shown:
            yield (
                f"{line.data}: rows are told by their attention alone, in {line.recipe}: {'; '.join(said)}. "
                "In brackets: what differs from the attention of the row's recipe."
            )
    for departure, labels in draft.departures.items():
        yield f"Not as the paper: {departure} ({', '.join(labels)})."


def _unlike_rows(
    lines: Mapping[Line, None], places: Mapping[tuple[int, Line, str], Sequence[Taken]]
) -> Iterator[str]:
    """Yield in which settings the rows of one line differ, but for what a row is, guidance and seeds."""
    for line in lines:
        found = {id(one): one for (_, own, _), taken in places.items() if own == line for one in taken}
        cases = {one.label: scored_settings(one.result.case) for one in found.values()}
        for key in dict.fromkeys(key for settings in cases.values() for key in settings):
            values: dict[str, list[str]] = {}
            for label, settings in cases.items():
                values.setdefault(str(settings.get(key, "not stored")), []).append(label)
            if len(values) > 1 and not key.startswith(MEANT_TO_DIFFER):
                said = (f"{value} ({_some(labels)})" for value, labels in values.items())
                yield f"{line.what}: rows differ in {key}: {', '.join(said)}."


def _over_seeds(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels each once; those that differ in their seed alone as one, `quick: linear (5 seeds)`."""
    seeds: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        seeds.setdefault(_SEED.sub("", label), []).append(label)
    return tuple(same[0] if len(same) == 1 else f"{bare} ({len(same)} seeds)" for bare, same in seeds.items())


def _some(labels: Sequence[str]) -> str:
    return f"{len(labels)} cases" if len(labels) > _MOST_NAMED else ", ".join(labels)


def _is_recipe(result: Result, recipes: Recipes) -> bool:
    return has_attention_of(result.case["model"], recipes[_name(result)])


def _name(result: Result) -> str:
    model = result.case.get("model")
    return str(model.get("name", "")) if isinstance(model, Mapping) else ""
