"""A made-up suite over seeds: three attentions, one clearly best, two that seeds cannot tell apart."""

from __future__ import annotations

import random
from collections.abc import Sequence

from report_cases import HOSTILE, make_result, with_measurement

from attnbench.results import Measurement, Result

LEVELS = {"softmax": 12.0, "linear": 12.2, HOSTILE: 8.0}
"""True Frechet distance of each attention; its other numbers are those of `report_cases`."""


def seeded(label: str, index: int, seed: int, distance: float, **changes: object) -> Result:
    """Return one case of a suite with several seeds; its quality is the distance and a precision from it."""
    plain = make_result(label, index)
    case = {**plain.case, "seed": seed}
    shown = make_result(
        f"{label} · seed={seed}",
        index,
        **{"case_id": f"case-{index}-{seed}", "axes": {"attention": label, "seed": f"{seed}"}, "case": case}
        | changes,
    )
    return with_measurement(
        shown.model_copy(update={"measurements": [m for m in shown.measurements if "KD" not in m.name]}),
        Measurement(name="FD-digits", values=[distance], n=500, better="lower"),
        Measurement(name="P-digits", values=[0.9 - distance / 100], n=500, better="higher"),
        Measurement(
            name="IS-digits", values=[9.0 + (seed * 7 + index * 3) % 5 / 100], n=500, better="higher"
        ),
        Measurement(name="R-digits", values=[0.7 + (seed * 5 + index * 2) % 7 / 100], n=500, better="higher"),
        Measurement(
            name="class_accuracy", values=[0.95 + (seed * 3 + index) % 4 / 100], n=500, better="higher"
        ),
    )


def make_seeds(seeds: Sequence[int] = (0, 1, 2), levels: dict[str, float] | None = None) -> list[Result]:
    """Return every attention with every seed: a seed moves all of them, and each a little by itself."""
    found = []
    for index, (label, level) in enumerate((levels or LEVELS).items()):
        for seed in seeds:
            draw = random.Random(f"{seed}").gauss(1, 0.08) * random.Random(f"{label} {seed}").gauss(1, 0.02)
            found.append(seeded(label, index, seed, level * draw))
    return found


def failed(result: Result) -> Result:
    """Return a case that did not finish."""
    kept = [m for m in result.measurements if m.name == "params" or "@" in m.name]
    changes = {"status": "failed", "reason": "NonFiniteError: NaN in step 7", "measurements": kept}
    return result.model_copy(update=changes)
