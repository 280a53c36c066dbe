"""What a metric is called in results: only true Inception features give the names of the literature."""

from __future__ import annotations

from typing import Literal

from attnbench.specs import Metric

PLAIN: dict[Metric, str] = {
    "fd": "FID",
    "kd": "KID",
    "is": "IS",
    "precision": "Precision",
    "recall": "Recall",
}
SHORT: dict[Metric, str] = {"fd": "FD", "kd": "KD", "is": "IS", "precision": "P", "recall": "R"}
BETTER: dict[Metric, Literal["lower", "higher"]] = {
    "fd": "lower",
    "kd": "lower",
    "is": "higher",
    "precision": "higher",
    "recall": "higher",
}


def metric_name(metric: Metric, suffix: str) -> str:
    """Return the name of `metric` on the features of an extractor with `suffix`.

    >>> metric_name("fd", "efflite0"), metric_name("fd", "")
    ('FD-efflite0', 'FID')
    """
    return f"{SHORT[metric]}-{suffix}" if suffix else PLAIN[metric]
