"""The numbers printed in Tables 1 to 8 of arXiv:2601.13683, read from `published.json`."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from attnbench.errors import UnknownNameError
from attnbench.models.published import TABLES
from attnbench.results import Direction, Record


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric as the paper prints it."""

    title: str
    name: str
    """What a measurement is called that compares with it."""
    families: tuple[str, ...]
    """What the same metric is called on other features, without their suffix."""
    better: Direction
    decimals: int
    scale: float = 1.0
    """Printed value over stored value."""


_FID = Metric(title="FID", name="FID", families=("FID", "FD"), better="lower", decimals=2)
_SFID = Metric(title="sFID", name="sFID", families=("sFID", "sFD"), better="lower", decimals=2)
_PRECISION, _RECALL = ("Precision", "P"), ("Recall", "R")
METRICS: dict[str, Metric] = {
    "fid": _FID,
    "sfid": _SFID,
    "kid": Metric(title="KID", name="KID", families=("KID", "KD"), better="lower", decimals=4),
    "skid": Metric(title="sKID", name="sKID", families=("sKID", "sKD"), better="lower", decimals=4),
    "is": Metric(title="IS", name="IS", families=("IS",), better="higher", decimals=2),
    "precision_pct": Metric(title="P%", name="Precision", families=_PRECISION, better="higher", decimals=2,
                            scale=100),
    "recall_pct": Metric(title="R%", name="Recall", families=_RECALL, better="higher", decimals=2, scale=100),
    "precision": Metric(title="P", name="Precision", families=_PRECISION, better="higher", decimals=2),
    "recall": Metric(title="R", name="Recall", families=_RECALL, better="higher", decimals=2),
}  # fmt: skip
GFLOPS = Metric(title="GFLOPs", name="macs_paper", families=(), better="none", decimals=2, scale=1e-9)


class PaperRow(Record):
    """One row as printed."""

    model: str
    recipe: str
    """Which of our recipes stands for it."""
    size: str
    """S, B or L."""
    reimplemented: bool = False
    """Marked * in the paper: replicated by its authors from released code."""
    gflops: float | None = None
    cfg: dict[str, list[float | None]]
    """By guidance scale, in the order of the table's metrics; None where the paper has a dash."""

    @property
    def title(self) -> str:
        """The system as the paper writes it."""
        return f"{self.model}*" if self.reimplemented else self.model


class PaperTable(Record):
    """One table as printed, and the settings that section 4.1 states for it."""

    title: str
    dataset: str
    resolution: int
    """Side of the images in pixels."""
    samples: int
    """Images behind every metric."""
    metrics: list[str]
    """Keys of METRICS, in the order of the columns."""
    told_by: list[str]
    """The options of an attention that tell the rows of this table apart."""
    protocol: dict[str, Any]
    """Settings by dotted key."""
    rows: list[PaperRow]

    @property
    def scales(self) -> list[str]:
        """Guidance scales, in the order of the columns."""
        return list(self.rows[0].cfg)

    @property
    def columns(self) -> list[Metric]:
        """The metrics of one guidance scale."""
        return [METRICS[name] for name in self.metrics]

    @property
    def sizes(self) -> list[str]:
        """Sizes of models, in the order of the rows."""
        return list(dict.fromkeys(row.size for row in self.rows))


class Published(Record):
    """The whole file."""

    source: str
    note: str
    tables: dict[str, PaperTable]


@functools.cache
def published() -> Published:
    """Return what the paper prints, as printed."""
    text = resources.files("attnbench.report.paper").joinpath("published.json").read_text(encoding="utf-8")
    return Published.model_validate(json.loads(text))


def paper_table(name: str) -> PaperTable:
    """Return one table, `table1` to `table8`; raises UnknownNameError with the nearest spelling."""
    if name not in published().tables:
        raise UnknownNameError("layout", name, TABLES)
    return published().tables[name]
