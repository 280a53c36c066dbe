"""What a metric is called in results: only true Inception features give the names of the literature."""

from __future__ import annotations

from typing import Literal

from attnbench.specs import Metric, Protocol

PLAIN: dict[Metric, str] = {
    "fd": "FID",
    "sfd": "sFID",
    "kd": "KID",
    "skd": "sKID",
    "is": "IS",
    "precision": "Precision",
    "recall": "Recall",
}
SHORT: dict[Metric, str] = {
    "fd": "FD",
    "sfd": "sFD",
    "kd": "KD",
    "skd": "sKD",
    "is": "IS",
    "precision": "P",
    "recall": "R",
}
BETTER: dict[Metric, Literal["lower", "higher"]] = {
    "fd": "lower",
    "sfd": "lower",
    "kd": "lower",
    "skd": "lower",
    "is": "higher",
    "precision": "higher",
    "recall": "higher",
}


def metric_name(metric: Metric, suffix: str, protocol: Protocol = "adm") -> str:
    """Return what `metric` is called on the features of an extractor with `suffix`, resized by `protocol`.

    >>> metric_name("fd", ""), metric_name("sfd", "efflite0"), metric_name("fd", "", "clean")
    ('FID', 'sFD-efflite0', 'clean-FID')
    """
    name = f"{SHORT[metric]}-{suffix}" if suffix else PLAIN[metric]
    return name if protocol == "adm" else f"{protocol}-{name}"
