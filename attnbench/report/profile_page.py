"""A profile as a page: costs, growth, crossovers, figures, in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from attnbench.errors import UserInputError
from attnbench.profiling.crossovers import crossovers
from attnbench.profiling.parts import BlockParts, block_times
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import by_setting, scalings
from attnbench.report.drawing import on_paper
from attnbench.report.markdown import escape, render_table
from attnbench.report.profile_figures import block_figure, cost_figure
from attnbench.report.profile_tables import rows_table, scaling_table
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.names import PROFILE_MARKDOWN


def write_profile_report(
    rows: Sequence[ProfileRow],
    folder: Path,
    *,
    baselines: Collection[str] = (),
    parts: Iterable[BlockParts] = (),
    command: str = "",
) -> Path:
    """Write `profile.md` with its `figures/` into `folder` and return its path.

    Every setting (mode, scope, batch size, precision, device) has a section of its own. `baselines` are the
    models that the others are compared with, `parts` the multiply-adds of blocks by closed form.
    Raises UserInputError on no rows and StorageError where a file cannot be written.
    """
    if not rows:
        raise UserInputError("no rows to report; profile a model first")
    figures: dict[str, str] = {}
    sections = []
    for number, (setting, together) in enumerate(by_setting(rows).items(), start=1):
        sections += _section(setting, together, baselines, f"cost-{number}", figures)
    blocks = _blocks(rows, list(parts), figures)
    if blocks:
        sections += ["## Where a block spends", *blocks]
    text = [f"# {escape('Profile of ' + _models(rows))}", *sections]
    if command:
        text += ["## Reproduce", f"    {' '.join(command.split())}"]
    for name, drawn in figures.items():
        _write(folder / "figures" / f"{name}.svg", on_paper(drawn))
    page = folder / PROFILE_MARKDOWN
    _write(page, "\n\n".join(text) + "\n")
    return page


def _models(rows: Sequence[ProfileRow]) -> str:
    models = list(dict.fromkeys(row.model for row in rows))
    return ", ".join(models) if len(models) <= 3 else f"{len(models)} models"


def _section(
    setting: str,
    rows: Sequence[ProfileRow],
    baselines: Collection[str],
    name: str,
    figures: dict[str, str],
) -> list[str]:
    growth, crossed = scalings(rows), crossovers(rows, baselines)
    text = [f"## {escape(setting[0].upper() + setting[1:])}"]
    drawn = cost_figure(rows, crossed)
    if drawn is not None:
        figures[name] = drawn
        caption = "Cost against resolution; rings: from here on less than the baseline, with 95 % intervals"
        text.append(_image(caption, name))
    found = scaling_table(growth, crossed, last_sizes=True)
    if found is not None:
        text += [f"### {escape(found.title)}", render_table(found)]
    return [*text, "### Costs", render_table(rows_table(rows, "Costs"))]


def _blocks(rows: Sequence[ProfileRow], parts: Sequence[BlockParts], figures: dict[str, str]) -> list[str]:
    """Draw blocks at the smallest and the largest side that they are known of."""
    sides = sorted({part.resolution for part in parts})
    times = [t for together in _by_setting_of_scope(rows) for t in block_times(together)]
    images = []
    for side in dict.fromkeys([*sides[:1], *sides[-1:]]):
        drawn = block_figure(
            [p for p in parts if p.resolution == side], [t for t in times if t.resolution == side]
        )
        if drawn is not None:
            figures[f"block-{side}"] = drawn
            images.append(_image(f"Where the middle block spends at {side} px", f"block-{side}"))
    return images


def _by_setting_of_scope(rows: Sequence[ProfileRow]) -> list[list[ProfileRow]]:
    """Return rows of forward passes that differ in model, side and scope alone; of the first setting."""
    found: dict[tuple[object, ...], list[ProfileRow]] = {}
    for row in rows:
        if row.mode == "forward":
            key = (row.device, row.precision, row.batch_size, row.conditions.threads, row.compile_s is None)
            found.setdefault(key, []).append(row)
    return list(found.values())[:1]


def _image(caption: str, name: str) -> str:
    return f"![{escape(caption)}]({quote(f'figures/{name}.svg')})"


def _write(path: Path, text: str) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
