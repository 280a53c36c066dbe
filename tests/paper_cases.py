"""Made-up results of the paper's recipes: what its tables would hold, shifted by a known amount."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report_cases import ENVIRONMENT

from attnbench.models.recipes import recipe
from attnbench.report.paper.published import PaperTable, paper_table
from attnbench.results import Measurement, Result

SHIFTS = {"fid": 1.25, "sfid": -0.5, "kid": 0.0011, "skid": 0.0002, "is": 3.0,
          "precision_pct": 4.5, "recall_pct": -2.25, "precision": 0.05, "recall": -0.02}  # fmt: skip
NAMES = {"fid": "FID", "sfid": "sFID", "kid": "KID", "skid": "sKID", "is": "IS", "precision_pct": "Precision",
         "recall_pct": "Recall", "precision": "Precision", "recall": "Recall"}  # fmt: skip


def paper_case(name: str, table: PaperTable, scale: float, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a case that is as section 4.1 says; `changes` go into its sections."""
    case: dict[str, Any] = {
        "model": recipe(name).model_dump(mode="json"),
        "data": {"name": "prepared", "path": "/data/subin"},
        "train": {"precision": "bf16"},
        "sample": {"guidance_scale": scale},
        "evaluate": {"extractor": "inception-tf", "protocol": "adm"},
        "seed": 0,
    }
    for key, value in table.protocol.items():
        section, setting = key.split(".")
        case[section][setting] = value
    for section, settings in changes.items():
        case[section] = {**case[section], **settings} if isinstance(settings, Mapping) else settings
    return case


def paper_result(
    name: str, table_name: str, scale: str, values: Mapping[str, float], seed: int = 0, **changes: Any
) -> Result:
    """Return a finished case of one recipe and guidance scale whose metrics, as printed, are `values`."""
    table = paper_table(table_name)
    n = changes.pop("n", table.samples)
    quality = [
        Measurement(name=NAMES[key], values=[value / (100 if key.endswith("_pct") else 1)], n=n)
        for key, value in values.items()
    ]
    count = Measurement(name=f"macs_paper@{table.resolution}", values=[6.0e9])
    label = f"{name} · guidance_scale={scale}" + (f" · seed={seed}" if seed else "")
    return Result(
        case_id=f"{name}-{scale}-{seed}-{sorted(changes.items())}",
        suite=table_name,
        label=label,
        axes={"recipe": name, "guidance_scale": scale} | ({"seed": str(seed)} if seed else {}),
        status="ok",
        measurements=[*quality, count],
        case=paper_case(name, table, float(scale), **{"seed": seed, **changes}),
        environment=ENVIRONMENT,
        created="2026-01-01T00:00:00Z",
    )


def full_run(table_name: str, shifts: Mapping[str, float] = SHIFTS, seed: int = 0) -> list[Result]:
    """Return a run of every recipe of a table whose numbers are the published ones and a shift."""
    table, results = paper_table(table_name), {}
    for row in table.rows:
        for scale, printed in row.cfg.items():
            pairs = zip(table.metrics, printed, strict=True)
            values = {key: (value or 0.5) + shifts[key] for key, value in pairs}
            results[row.recipe, scale] = paper_result(row.recipe, table_name, scale, values, seed)
    return list(results.values())
