"""How a model's time and memory grow with the number of tokens: exponents of measured rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from attnbench.profiling.resampling import TAILS, Array, log_latency
from attnbench.profiling.rows import ProfileRow
from attnbench.results import Record

Quantity = Literal["time", "memory"]
QUANTITIES: tuple[Quantity, ...] = ("time", "memory")
LATENCY = "latency_ms"
# what memory is told by, the best first: sizes of tensors are exact, a resident set is read once, with noise
MEMORIES = ("live_memory_mib", "extra_memory_mib", "planned_memory_mib")

Interval = tuple[float, float]


class Scaling(Record):
    """value ~ tokens ^ exponent, fitted to one model's rows of one setting by least squares of logarithms.

    The intervals hold what the rounds leave open, 95 %. Not in them: that the curve may be no straight line
    (that is what `last_exponent` is for), and what changes in the machine between two resolutions.
    """

    model: str
    setting: str
    quantity: Quantity
    measured_as: str = ""
    """The column of the rows that was fitted."""
    tokens: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)
    exponent: float | None = None
    """None with fewer than two sizes."""
    interval: Interval | None = None
    """None of memory, which is measured once, and where a row has too few rounds."""
    last_exponent: float | None = None
    """Between the two largest sizes alone."""
    last_interval: Interval | None = None
    left_out: list[str] = Field(default_factory=list)
    """Rows that were not used, each with its reason."""


def scalings(rows: Iterable[ProfileRow]) -> list[Scaling]:
    """Return time's and memory's growth of every model in every setting of `rows`, in order of appearance."""
    return [
        _scaling(model, setting, quantity, found)
        for setting, together in by_setting(rows).items()
        for model, found in by_model(together).items()
        for quantity in QUANTITIES
        if measured_as([found], quantity)
    ]


def by_setting(rows: Iterable[ProfileRow]) -> dict[str, list[ProfileRow]]:
    """Return rows that may be compared under one description each: what was run, on what, how."""
    found: dict[str, list[ProfileRow]] = {}
    for row in rows:
        passes = {"forward": "forward pass", "train": "training step", "sample": "guided sampler step"}
        parts = [
            f"{passes[row.mode]} of the {row.scope}" if row.scope != "end-to-end" else "model with decoder",
            f"batch {row.batch_size}",
            row.precision,
            row.device,
            _threads(row.conditions.threads) if row.device == "cpu" else "",
            "compiled" if row.compile_s is not None else "",
        ]
        found.setdefault(", ".join(filter(None, parts)), []).append(row)
    return found


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def by_model(rows: Iterable[ProfileRow]) -> dict[str, list[ProfileRow]]:
    """Return each model's rows by ascending resolution; of two at one resolution the later."""
    found: dict[str, dict[int, ProfileRow]] = {}
    for row in rows:
        found.setdefault(row.model, {})[row.resolution] = row
    return {model: [sides[side] for side in sorted(sides)] for model, sides in found.items()}


def measured_as(models: Iterable[Sequence[ProfileRow]], quantity: Quantity) -> str:
    """Return the column that tells a quantity in most rows of every model, the best of equals, or ''."""
    if quantity == "time":
        return LATENCY if all(any(row.rounds for row in rows) for rows in models) else ""
    counts = {
        name: min(sum(bool(value_of(row, name)) for row in rows) for rows in models) for name in MEMORIES
    }
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ""


def value_of(row: ProfileRow, name: str) -> float | None:
    """Return a column's value; planned memory is taken without the weights, which do not grow."""
    value: float | None = getattr(row, name)
    if name == "planned_memory_mib" and value is not None:
        return value - (row.weights_mib or 0.0)
    return value


def why_left_out(row: ProfileRow, name: str) -> str:
    """Return why a row says nothing of a column, or '' where it does; a disturbance spoils times alone."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    if name == LATENCY and row.disturbed:
        return f"disturbed: {row.disturbed}"
    value = value_of(row, name)
    if value is None or not math.isfinite(value) or value <= 0:
        return "not measured" if value is None else f"{value:g} has no logarithm"
    return ""


def usable(rows: Sequence[ProfileRow], name: str) -> tuple[list[ProfileRow], list[str]]:
    """Return the rows that tell a column, and the others in words."""
    reasons = {id(row): why_left_out(row, name) for row in rows}
    left_out = [f"{r.model} at {r.resolution} px: {reasons[id(r)]}" for r in rows if reasons[id(r)]]
    return [row for row in rows if not reasons[id(row)]], left_out


def _scaling(model: str, setting: str, quantity: Quantity, rows: Sequence[ProfileRow]) -> Scaling:
    name = measured_as([rows], quantity)
    kept, left_out = usable(rows, name)
    found = Scaling(
        model=model,
        setting=setting,
        quantity=quantity,
        measured_as=name,
        tokens=[row.tokens for row in kept],
        values=[value_of(row, name) or math.nan for row in kept],
        left_out=left_out,
    )
    if len({row.tokens for row in kept}) < 2:
        return found
    x = np.log([row.tokens for row in kept])
    rng = np.random.default_rng(0)  # the same rows, the same interval
    logs = [
        log_latency(row, rng) if name == LATENCY else (math.log(value), None)
        for row, value in zip(kept, found.values, strict=True)
    ]
    y = np.array([value for value, _ in logs])
    draws = [drawn for _, drawn in logs if drawn is not None]
    together = np.stack(draws, axis=-1) if len(draws) == len(logs) else None  # [DRAWS, sizes]
    exponent, interval = _exponent(x, y, together)
    last, last_interval = _exponent(x[-2:], y[-2:], None if together is None else together[:, -2:])
    return found.model_copy(
        update={
            "exponent": exponent,
            "interval": interval,
            "last_exponent": last,
            "last_interval": last_interval,
        }
    )


def _exponent(x: Array, y: Array, draws: Array | None) -> tuple[float, Interval | None]:
    """Return the slope of least squares and its interval; a slope is linear in y, so draws give slopes."""
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    interval = None
    if draws is not None:
        low, high = np.quantile(draws @ weights, TAILS)
        interval = (float(low), float(high))
    return float(y @ weights), interval
