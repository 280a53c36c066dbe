"""From which size on a model beats another in time or memory: crossovers of measured rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from attnbench.profiling.resampling import TAILS, Array, log_ratio
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import (
    LATENCY,
    QUANTITIES,
    Quantity,
    by_model,
    by_setting,
    measured_as,
    usable,
    value_of,
)
from attnbench.results import Record

Verdict = Literal["from", "always", "never", "unclear", "not measured"]
Ends = tuple[float | None, float | None]


class Crossover(Record):
    """From which size on one model takes less than another, between measured sizes.

    The ratio of the two is interpolated between neighbouring resolutions, linearly in logarithms: exact for
    powers of the number of tokens. Where it crosses 1 several times, the last crossing from which the model
    takes less up to the largest size is told. The interval holds what the rounds leave open (95 %).
    """

    model: str
    baseline: str
    setting: str
    quantity: Quantity
    measured_as: str = ""
    verdict: Verdict
    """`from`: less from `tokens` on; `always`, `never`: at every, or not at the largest, measured size;
    `unclear`: the interval is the whole measured range."""
    tokens: float | None = None
    """Tokens of the model."""
    resolution: float | None = None
    """Side of the decoded image, pixels."""
    tokens_interval: Ends | None = None
    """95 %; an end outside the measured range is None: both, where the verdict is
    sure and no crossover lies within. Memory has no interval: it is measured once."""
    resolution_interval: Ends | None = None
    crossings: list[float] = Field(default_factory=list)
    """Every resolution at which the ratio of medians crosses 1."""
    resolutions: list[int] = Field(default_factory=list)
    """Where both were measured."""
    ratios: list[float] = Field(default_factory=list)
    """There: the model's over the baseline's."""
    left_out: list[str] = Field(default_factory=list)

    @property
    def measured_range(self) -> tuple[int, int] | None:
        """Smallest and largest resolution at which both were measured."""
        return (self.resolutions[0], self.resolutions[-1]) if self.resolutions else None


def crossovers(rows: Iterable[ProfileRow], baselines: Collection[str]) -> list[Crossover]:
    """Compare every model with a baseline, in every setting of `rows`, in order of appearance.

    A model meets the baseline of its own size (S, B, L) where there is one, else the first of `baselines`
    that was measured.
    """
    found = []
    for setting, together in by_setting(rows).items():
        models = by_model(together)
        for model, ours in models.items():
            baseline = _baseline(ours, models, baselines)
            if model in baselines or baseline is None:
                continue
            for quantity in QUANTITIES:
                name = measured_as([ours, models[baseline]], quantity)
                if name:
                    pairs = _pairs(ours, models[baseline], name)
                    found.append(_crossover(model, baseline, setting, quantity, name, pairs))
    return found


def _baseline(
    rows: Sequence[ProfileRow], models: dict[str, list[ProfileRow]], baselines: Collection[str]
) -> str | None:
    measured = [name for name in baselines if name in models]
    same_size = [name for name in measured if models[name][0].size == rows[0].size]
    return next(iter([*same_size, *measured]), None)


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Rows of two models at the resolutions where both tell a column."""

    ours: list[ProfileRow]
    theirs: list[ProfileRow]
    left_out: list[str]


def _pairs(ours: Sequence[ProfileRow], theirs: Sequence[ProfileRow], name: str) -> _Pairs:
    (mine, mine_out), (others, others_out) = usable(ours, name), usable(theirs, name)
    by_side = {row.resolution: row for row in others}
    both = [row for row in mine if row.resolution in by_side]
    return _Pairs(
        ours=both, theirs=[by_side[row.resolution] for row in both], left_out=[*mine_out, *others_out]
    )


def _crossover(
    model: str, baseline: str, setting: str, quantity: Quantity, name: str, pairs: _Pairs
) -> Crossover:
    known = Crossover(
        model=model,
        baseline=baseline,
        setting=setting,
        quantity=quantity,
        measured_as=name,
        verdict="not measured",
        left_out=pairs.left_out,
    )
    if not pairs.ours:
        return known
    rng = np.random.default_rng(0)  # the same rows, the same interval
    both = list(zip(pairs.ours, pairs.theirs, strict=True))
    logs = [log_ratio(*pair, rng) if name == LATENCY else (_memory_ratio(*pair, name), None) for pair in both]
    x = np.log([row.resolution for row in pairs.ours])
    ratio = np.array([value for value, _ in logs])  # [sizes]
    draws = [drawn for _, drawn in logs if drawn is not None]
    place = float(_last_crossing(x, ratio[None])[0])
    ends = None
    if len(draws) == len(logs):
        places = _last_crossing(x, np.stack(draws, axis=-1))  # [DRAWS]
        # no interpolation between draws: some are infinite
        low, high = np.quantile(places, TAILS, method="inverted_cdf")
        ends = (float(low), float(high))
    tokens = np.log([row.tokens for row in pairs.ours])
    return known.model_copy(
        update={
            "verdict": _verdict(place, ends),
            "resolution": _size(place),
            "resolution_interval": ends and tuple(map(_size, ends)),
            "tokens": _size(place, x, tokens),
            "tokens_interval": ends and tuple(_size(end, x, tokens) for end in ends),
            "crossings": _all_crossings(x, ratio),
            "resolutions": [row.resolution for row in pairs.ours],
            "ratios": np.exp(ratio).tolist(),
        }
    )


def _memory_ratio(row: ProfileRow, other: ProfileRow, name: str) -> float:
    return math.log((value_of(row, name) or math.nan) / (value_of(other, name) or math.nan))


def _last_crossing(x: Array, ratios: Array) -> Array:
    """Return where each line of log ratios [lines, sizes] falls below 0 for good.

    -inf where it is below everywhere, inf where it is not below at the end.
    """
    above = ratios >= 0
    num = ratios.shape[1]
    last = num - 1 - np.argmax(above[:, ::-1], axis=1)  # the last size not below, where there is one
    before = np.minimum(last, num - 2) if num > 1 else np.zeros_like(last)
    after = np.minimum(before + 1, num - 1)
    line = np.arange(len(ratios))
    high, low = ratios[line, before], ratios[line, after]
    inside = above.any(axis=1) & ~above[:, -1]
    share = np.where(inside, high / np.where(inside, high - low, 1.0), 0.0)
    places = x[before] + share * (x[after] - x[before])
    return np.where(above[:, -1], np.inf, np.where(inside, places, -np.inf))


def _all_crossings(x: Array, ratio: Array) -> list[float]:
    """Return the resolutions at which the line of medians passes 0, either way."""
    above = ratio >= 0
    found = []
    for i in np.flatnonzero(above[1:] != above[:-1]):
        share = ratio[i] / (ratio[i] - ratio[i + 1])
        found.append(float(np.exp(x[i] + share * (x[i + 1] - x[i]))))
    return found


def _verdict(place: float, ends: tuple[float, float] | None) -> Verdict:
    if ends == (-math.inf, math.inf):
        return "unclear"
    if math.isfinite(place):
        return "from"
    return "always" if place < 0 else "never"


def _size(place: float, x: Array | None = None, logs: Array | None = None) -> float | None:
    """Return the size at a place on the axis of log resolutions; None outside the measured range."""
    if not math.isfinite(place):
        return None
    return math.exp(place if x is None or logs is None else float(np.interp(place, x, logs)))
