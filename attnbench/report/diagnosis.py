"""What the stage `diagnose` recorded, as drawings and a table: oversmoothing, lambda, routers, maps.

Read from small files beside the report. A case without a diagnosis is left out; a file that cannot be read is
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attnbench.report.diagnosis_lines import Diagnosed, lambda_figure, oversmoothing_figure, timestep_figure
from attnbench.report.diagnosis_pictures import balance_figure, projector_figure, query_figure
from attnbench.report.diagnosis_record import MAP_MEASURES, PREFIX, read_diagnosis
from attnbench.report.drawing import Drawing, shortened
from attnbench.report.quantities import DIAGNOSIS
from attnbench.report.router_drawing import router_drawing
from attnbench.report.tables import (
    Column,
    Entry,
    FilledColumn,
    RowHead,
    Table,
    assemble,
    quantity_cells,
    quantity_column,
    text_cell,
)
from attnbench.results import Result

OVER_TOKENS = "t"
LAMBDA_CAPTION = (
    "Mean differential factor of each block over tokens and timesteps; where queries and keys have their "
    "own, hollow marks are those of the keys."
)
TOKEN_NOTE = (
    f"{OVER_TOKENS}: no values could be seen in this attention, so its map leads to its input tokens, with "
    "queries, keys and gates in it: not to be compared with maps of values."
)


def projectors_caption(one: Diagnosed) -> str:
    """Say what the picture of a case's projectors shows."""
    return (
        f"{one.label}: the projector that most tokens of a class choose in each block. The stronger its "
        "colour, the more one-sided the choice: white is an even one (entropy 1), full colour one "
        "projector for all (entropy 0)."
    )


def diagnosed(results: Sequence[Result], run_dir: Path) -> tuple[list[Diagnosed], list[str]]:
    """Return every diagnosis with its case's place among the results, and what could not be read."""
    found: list[Diagnosed] = []
    problems: list[str] = []
    for series, result in enumerate(results):
        read = read_diagnosis(run_dir, result)
        if isinstance(read, str):
            problems.append(f"{result.label}: {read}")
        elif read is not None:
            found.append(Diagnosed(series=series, label=shortened(result.label), diagnosis=read))
    return found, problems


def diagnosis_drawings(results: Sequence[Result], run_dir: Path) -> list[Drawing]:
    """Return the drawings of every diagnosis, and of routers in training; none that would be empty.

    Without a diagnosis there are none: every training leaves the curves of its routers, but matplotlib, which
    draws them, takes as long as all the rest of a report.
    """
    found, _ = diagnosed(results, run_dir)
    if not found:
        return []
    drawn = [
        ("oversmoothing", oversmoothing_figure(found), _oversmoothing_caption(found)),
        (
            "oversmoothing-timesteps",
            timestep_figure(found),
            "The same, mean over blocks, at each timestep: 999 is noise, 0 an image.",
        ),
        ("lambda", lambda_figure(found), LAMBDA_CAPTION),
        ("router-balance", balance_figure(found), "How evenly each block's tokens choose: the entropy of the "
         "options' shares over its largest value. 1: all options alike; 0: one option takes every token."),
        ("query-maps", query_figure(found), query_caption(found)),
    ]  # fmt: skip
    shown = [Drawing(name=name, svg=svg, caption=caption) for name, svg, caption in drawn if svg]
    if trained := router_drawing(results):
        shown.append(trained)
    for one in found:
        if picture := projector_figure(one):
            name, caption = f"projectors-{one.series}", projectors_caption(one)
            shown.append(Drawing(name=name, svg=picture, caption=caption))
    return shown


def diagnosis_table(results: Sequence[Result], run_dir: Path) -> Table | None:
    """Return means over blocks and timesteps, one row a case that has any; None without a diagnosis."""
    rows = [(i, r) for i, r in enumerate(results) if any(m.name.startswith(PREFIX) for m in r.measurements)]
    if not rows:
        return None
    found, problems = diagnosed(results, run_dir)
    over_tokens = {one.series for one in found if "tokens" in one.diagnosis.paths}
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(result.label) for _, result in rows])
    ]
    for quantity in DIAGNOSIS:
        entries = []
        for _, result in rows:
            measured = result.measurement(quantity.name)
            value = measured.values[0] if measured is not None and measured.values else None
            entries.append(Entry(value=value, n=None if measured is None else measured.n))
        cells = quantity_cells(quantity, entries, [result.status == "ok" for _, result in rows])
        if quantity.name.removeprefix(PREFIX) in MAP_MEASURES:
            marked = (
                replace(cell, marks=OVER_TOKENS) if i in over_tokens else cell
                for cell, (i, _) in zip(cells, rows, strict=True)
            )
            cells = list(marked)
        columns.append((quantity_column(quantity, entries), cells))
    heads = [RowHead(status=result.status, series=i) for i, result in rows]
    notes = [f"{quantity.title}: {quantity.definition}" for quantity in DIAGNOSIS]
    notes += [TOKEN_NOTE] if over_tokens else []
    return assemble("Inside the trained models", columns, heads, (*notes, *problems))


def _oversmoothing_caption(found: Sequence[Diagnosed]) -> str:
    one = found[0].diagnosis
    text = (
        "Oversmoothing, mean over timesteps: how alike the tokens leave each block, and how even, how poor "
        f"in rank and how flat its implied attention map is ({one.images} and {one.map_images} training "
        f"images, timesteps {', '.join(map(str, one.timesteps))})."
    )
    over_tokens = [each.label for each in found if "tokens" in each.diagnosis.paths]
    remark = f" The maps of {', '.join(over_tokens)} lead to input tokens, all others to values."
    return text + (remark if over_tokens else "")


def query_caption(found: Sequence[Diagnosed]) -> str:
    """Say which token's weights are shown, and of which block."""
    kept = next((one.diagnosis.query_maps for one in found if one.diagnosis.query_maps), None)
    timestep = kept.timestep if kept else 0
    return (
        "Implied attention of one output token (the frame) over all input tokens, in the middle block, mean "
        f"over heads, at timestep {timestep}; the same image and noise for every case of a seed. Each "
        "picture goes from its own smallest to its own largest weight."
    )
