"""Everything one report says, gathered once and shown alike in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.report import sections as facts
from attnbench.report.aspects import noise_of
from attnbench.report.charts import looks
from attnbench.report.comparison import comparison_table, seed_table
from attnbench.report.configurations import configurations
from attnbench.report.conversion import conversion_tables
from attnbench.report.conversion_drawing import conversion_drawings
from attnbench.report.costs import cost_table, other_table, problems_table, training_table
from attnbench.report.diagnosis import diagnosis_drawings, diagnosis_table
from attnbench.report.drawing import Drawing
from attnbench.report.figures import case_drawings
from attnbench.report.grids import Grid, read_grids
from attnbench.report.pareto_chart import pareto_drawings
from attnbench.report.settings import settings_tables
from attnbench.report.tables import Table, plain
from attnbench.results import Result

SAME_NOISE = (
    "The same position in every grid starts from the same noise and class: what differs is the model. "
    "One row per class."
)
SAME_SEED_ONLY = (
    "Grids of one seed start from the same noise and class at each position; here the seeds differ between "
    "cases. One row per class."
)
OTHER_NOISE = (
    "Grids start from the same class at each position, but not all from the same noise: sample.noise differs "
    "between cases. One row per class."
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """One report, free of any markup but the figures' own SVG."""

    title: str
    question: str
    glance: list[tuple[str, str]]
    comparison: Table
    problems: Table | None
    grids: list[Grid]
    grids_note: str
    series: list[str]
    """The label of each case, by its position among the results."""
    looks: list[int]
    """The configuration of each case, which seeds share: its colour, dash and mark everywhere."""
    configurations: list[str]
    """The label of each configuration."""
    figures: list[Drawing]
    conversion: list[Table]
    """Quality against steps of converted models; empty where nothing was converted."""
    diagnosis: Table | None
    seeds: Table | None
    """The values of each seed, where rows are means over several."""
    cost: Table | None
    training: Table | None
    other: Table | None
    warnings: list[str]
    definitions: list[tuple[str, str]]
    differences: Table | None
    common: Table | None
    environment: Table
    command: str
    version: str


def gather(run_dir: Path, results: Sequence[Result], title: str, question: str, command: str) -> Content:
    """Gather a report's content from the results and the grids in the run directory."""
    differences, common = settings_tables(results)
    return Content(
        title=plain(title),
        question=plain(question),
        glance=facts.at_a_glance(results),
        comparison=comparison_table(results),
        problems=problems_table(results),
        grids=read_grids(run_dir, results),
        grids_note=_grids_note(results),
        series=[plain(result.label) for result in results],
        looks=looks(results),
        configurations=[plain(configuration.label) for configuration in configurations(results)],
        figures=[drawing for draw in DRAWINGS for drawing in draw(results, run_dir)],
        conversion=conversion_tables(results),
        diagnosis=diagnosis_table(results, run_dir),
        seeds=seed_table(results),
        cost=cost_table(results),
        training=training_table(results),
        other=other_table(results),
        warnings=facts.warnings(results),
        definitions=facts.definitions(results),
        differences=differences,
        common=common,
        environment=facts.environment_table(results),
        command=command,
        version=plain(results[0].environment.packages.get("attnbench", "")),
    )


def _grids_note(results: Sequence[Result]) -> str:
    """Say what the images at one position have in common."""
    drawn = [noise_of(result) for result in results if "grid" in result.artefacts]
    if len({noise for noise in drawn if noise is not None}) > 1:
        return OTHER_NOISE
    return SAME_NOISE if len(facts.seeds_of(results)) <= 1 else SAME_SEED_ONLY


def _case_drawings(results: Sequence[Result], run_dir: Path) -> list[Drawing]:
    return case_drawings(results)


def _pareto_drawings(results: Sequence[Result], run_dir: Path) -> list[Drawing]:
    return pareto_drawings(results)


DRAWINGS: tuple[Callable[[Sequence[Result], Path], list[Drawing]], ...] = (
    conversion_drawings,
    _case_drawings,
    _pareto_drawings,
    diagnosis_drawings,
)
"""What draws a report's figures, in the order of the report: of one result per case and the run's folder."""
