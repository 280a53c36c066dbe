"""Rows of a profile with known growth: synthetic times, in rounds with noise that pairs share or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow

SIDES = (256, 512, 1024, 2048)


def make_row(model: str, side: int, times: Sequence[float] = (), **changes: Any) -> ProfileRow:
    """Return one row with one round of one sample for each time in ms; 16 px a token's side."""
    fields: dict[str, Any] = {
        "model": model,
        "resolution": side,
        "tokens": (side // 16) ** 2,
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 1,
        "session": "one",
        "rounds": [Round(latency_ms=[time], cpu_time_ms=[time]) for time in times],
    }
    return ProfileRow(**(fields | changes))


def noisy_rows(
    model: str,
    time_ms: Callable[[int], float],
    rng: np.random.Generator,
    *,
    sides: Sequence[int] = SIDES,
    rounds: int = 6,
    noise: float = 0.03,
    moods: np.ndarray | None = None,
    **changes: Any,
) -> list[ProfileRow]:
    """Return a row for each side; `time_ms` maps tokens to the true median.

    `moods` [sides, rounds] is how far the machine's slowness in each round, which rows of a session share,
    moves the logarithm.
    """
    found = []
    for i, side in enumerate(sides):
        logs = noise * rng.standard_normal(rounds)
        if moods is not None:
            logs = logs + moods[i]
        found.append(make_row(model, side, time_ms((side // 16) ** 2) * np.exp(logs), **changes))
    return found
