"""Everything one report says, gathered once and shown alike in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.report import sections as facts
from attnbench.report.comparison import comparison_table
from attnbench.report.costs import cost_table, other_table, problems_table, training_table
from attnbench.report.drawing import Drawing
from attnbench.report.figures import hollow_points, loss_figure, tradeoff_figure
from attnbench.report.grids import Grid, read_grids
from attnbench.report.quantities import LATENCY, MACS
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
    figures: list[Drawing]
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
    differences, common = facts.settings_tables(results)
    return Content(
        title=plain(title),
        question=plain(question),
        glance=facts.at_a_glance(results),
        comparison=comparison_table(results),
        problems=problems_table(results),
        grids=read_grids(run_dir, results),
        grids_note=SAME_NOISE if len(facts.seeds_of(results)) <= 1 else SAME_SEED_ONLY,
        figures=_figures(results),
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


def _figures(results: Sequence[Result]) -> list[Drawing]:
    drawn = (
        ("loss", loss_figure(results), "Training loss, each point the mean of its logging interval."),
        (
            "held-out-loss",
            _held_out_figure(results),
            "Denoising loss of the averages on held-out images.",
        ),
        ("quality-latency", tradeoff_figure(results, LATENCY), _latency_caption(results)),
        ("quality-macs", tradeoff_figure(results, MACS), "Quality against multiply-adds of one pass."),
    )
    return [Drawing(name=name, svg=svg, caption=caption) for name, svg, caption in drawn if svg]


def _latency_caption(results: Sequence[Result]) -> str:
    hollow = hollow_points(results, LATENCY)
    remark = f" Hollow: disturbed, not to be ranked ({', '.join(hollow)})." if hollow else ""
    return f"Quality against the latency of one pass.{remark}"


def _held_out_figure(results: Sequence[Result]) -> str | None:
    """Return the held-out curves where some case was measured more than once."""
    several = any(len(result.curves.get("held_out_loss", [])) > 1 for result in results)
    return loss_figure(results, "held_out_loss", "held-out loss") if several else None
