"""Figure 1(a): the cost of one pass against resolution, from a run's own profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.errors import UserInputError
from attnbench.profiling.crossovers import crossovers
from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import Conditions, ProfileRow
from attnbench.profiling.scaling import by_model, by_setting
from attnbench.report.configurations import configurations
from attnbench.report.paper_figures.families import by_series
from attnbench.report.profile_figures import draw_costs, panels_of
from attnbench.report.quantities import resolutions
from attnbench.results import Measurement, Result
from attnbench.specs import content_hash

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COUNTED = ("macs_paper", "macs_full")
_READ = ("live_memory_mib", "extra_memory_mib", "peak_memory_mib", "reserved_memory_mib")


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """Rows of one setting, and which of their models the others are compared with."""

    rows: list[ProfileRow]
    baselines: list[str]
    """Models all of whose attentions are softmax."""


def profiled(results: Sequence[Result]) -> Profiled:
    """Return one row per model and resolution, models in the order of the paper's families.

    Cases that differ in what has no part in their cost (guidance, steps, seed) are one model. Raises
    UserInputError where there is no second resolution, or the cases were profiled in several settings.
    """
    rows: list[ProfileRow] = []
    baselines, known = [], set()
    for series, members in by_series(configurations(results)).items():
        for model, configuration in members:
            result, name = configuration.results[0], f"{series} {model.size}".strip()
            config = result.case.get("model", {})
            same_cost = content_hash(
                [config, result.case.get("profile"), result.case.get("data")] if config else name
            )
            if same_cost in known or not resolutions(result):
                continue
            known.add(same_cost)
            rows += [_row(result, name, model.size, side) for side in resolutions(result)]
            if _is_softmax(config.get("attention")):
                baselines.append(name)
    sides = sorted({row.resolution for row in rows})
    if len(sides) < 2:
        got = f"profiled at {sides[0]} px alone" if sides else "not profiled"
        raise UserInputError(
            f"figure 1a shows cost against resolution, and these cases were {got}; set profile.resolutions "
            "in the suite, such as -o 'profile.resolutions=[256,512,1024]', or draw it without a run: "
            "attnbench profile --models table1 --res 256,512,1024,2048 --report FOLDER"
        )
    settings = list(by_setting(rows))
    if len(settings) > 1:
        raise UserInputError(
            f"figure 1a is of one setting, and these cases were profiled in {len(settings)}: "
            f"{'; '.join(settings)}; name fewer runs, or choose cases with --case"
        )
    return Profiled(rows=rows, baselines=baselines)


def draw_cost_resolution(found: Profiled) -> Figure:
    """Return the figure; call it within `drawing()`."""
    crossed = crossovers(found.rows, found.baselines)
    return draw_costs(by_model(found.rows), panels_of(found.rows), crossed)


CAPTION = (
    "Time, memory and multiply-adds of one pass against resolution, both axes logarithmic. Rings: from there "
    "on a model takes less than its softmax baseline of the same size, with the 95 % interval. Hollow: "
    "disturbed, not joined."
)


def _is_softmax(attention: Any) -> bool:
    every = attention if isinstance(attention, list) else [attention]
    return all(isinstance(spec, dict) and spec.get("name") == "softmax" for spec in every)


def _row(result: Result, name: str, size: str, side: int) -> ProfileRow:
    """Return a row as the profiler wrote it, as far as a result keeps it."""
    profile = result.case.get("profile", {})
    config = result.case.get("model", {})
    latency = result.measurement(f"latency_ms@{side}")
    counts = {column: _number(result, f"{column}@{side}") for column in _COUNTED}
    return ProfileRow(
        model=name,
        size=size,
        resolution=side,
        tokens=_tokens(config, side),
        device=f"{result.environment.device} ({result.environment.cpu})",
        precision=profile.get("precision") or "fp32",
        batch_size=profile.get("batch_size", 1),
        mode=profile.get("mode", "forward"),
        scope=profile.get("scope", "model"),
        session=latency.session if latency else "",
        conditions=Conditions(threads=result.environment.threads),
        rounds=_rounds(latency),
        disturbed=latency.disturbed if latency else "",
        **{column: None if value is None else int(value) for column, value in counts.items()},
        **{column: _number(result, f"{column}@{side}") for column in _READ},
    )


def _rounds(latency: Measurement | None) -> list[Round]:
    """Return rounds as they are kept: clean ones with the samples that count, the others marked as stolen.

    An earlier version kept no rounds: its samples are taken as one, from which no interval follows.
    """
    if latency is None or not latency.values:
        return []
    if not latency.rounds:
        return [Round(latency_ms=latency.values, cpu_time_ms=[])]
    return [
        Round(latency_ms=samples, cpu_time_ms=[], stolen_share=0.0 if clean else 1.0, process=process)
        for samples, clean, process in zip(
            latency.rounds,
            latency.clean_rounds,
            latency.round_processes or [0] * len(latency.rounds),
            strict=True,
        )
        if samples
    ]


def _number(result: Result, name: str) -> float | None:
    measured = result.measurement(name)
    return measured.value if measured is not None and measured.values else None


def _tokens(config: dict[str, Any], side: int) -> int:
    """Return the tokens of a model on latents of the usual factor 8, or on pixels.

    Nothing drawn depends on it but the order of sizes.
    """
    patch = int(config.get("patch_size", 2))
    factor = 8 if config.get("input") == "latent" else 1
    return max(1, (side // (factor * patch)) ** 2)
