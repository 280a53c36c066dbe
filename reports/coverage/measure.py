"""How often each metric's 95 % interval holds what it is of, by simulation.

The reference is drawn once and stays; samples are drawn `--draws` times, each set is measured with its
interval, and counted is how often the interval holds the mean of all draws, which is what the metric is at
this n (the intervals know no bias). Features are small (F = 16 and 32; the Frechet distance also at n = 2 F =
256), because the redrawing is what takes the time: a few minutes on two cores.

    python reports/coverage/measure.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.reference import Provenance, reference_of
from attnbench.evaluation.scores import measure
from attnbench.specs import EvaluateSpec, Metric

REFERENCE, CLASSES = 1000, 10
PROVENANCE = Provenance(extractor="some", protocol="adm", identity="", height=1, width=1, channels=3)
METRICS: tuple[Metric, ...] = ("fd", "sfd", "kd", "skd", "is", "precision", "recall")
Draw = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A distribution of real features and one of samples, [n, F] each."""

    name: str
    real: Draw
    samples: Draw


def normal(width: int, spread: float = 1.0, shift: float = 0.0) -> Draw:
    """Return independent normal features."""
    return lambda n, generator: spread * torch.randn(n, width, generator=generator) + shift


def mixture(width: int, spread: float = 1.0) -> Draw:
    """Return ten normal classes of different sizes around fixed places."""
    places = 2 * torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    sizes = spread * torch.linspace(0.5, 1.5, CLASSES)

    def draw(n: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(CLASSES, (n,), generator=generator)
        return places[chosen] + sizes[chosen, None] * torch.randn(n, width, generator=generator)

    return draw


CASES = (
    Case("equal", normal(16), normal(16)),
    Case("narrower", normal(16), normal(16, 0.8)),
    Case("narrower, moved, F = 32", normal(32), normal(32, 0.85, 0.1)),
    Case("ten classes, narrower", mixture(16), mixture(16, 0.8)),
)
WIDE = 128
WIDE_CASES = (
    Case("equal, n = 2 F", normal(WIDE), normal(WIDE)),
    Case("narrower, n = 2 F", normal(WIDE), normal(WIDE, 0.8)),
)


@dataclass(frozen=True)
class Coverage:
    """What was found for one metric: its mean, its true spread, and how often the interval holds the mean."""

    metric: str
    mean: float
    spread: float
    width: float
    """Mean half interval over 1.96 true spreads: 1 is right."""
    covered: float


def features(pooled: torch.Tensor, generator: torch.Generator) -> ExtractedFeatures:
    """Return features whose spatial part is their first half and whose logits are linear in them."""
    width = pooled.shape[1]
    head = torch.randn(width, CLASSES, generator=torch.Generator().manual_seed(7))
    digests = torch.randint(0, 256, (len(pooled), 16), generator=generator, dtype=torch.uint8)
    return ExtractedFeatures(
        pooled=pooled, spatial=pooled[:, : width // 2], logits=pooled @ head, digests=digests
    )


def coverage(case: Case, n: int, draws: int, metrics: tuple[Metric, ...] = METRICS) -> Iterator[Coverage]:
    """Yield every metric's coverage with samples redrawn and the reference fixed."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    settings = EvaluateSpec(metrics=list(metrics), kd_subset_size=100, kd_subsets=20)
    pooled = case.real(REFERENCE, generator)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(draws):
        # subsets are drawn from the images in the order of their digests: new digests, new subsets
        real = reference_of("real", features(pooled, generator), PROVENANCE)
        for one in measure(settings, "", real, features(case.samples(n, generator), generator)):
            if one.interval is not None:
                found.setdefault(one.name, []).append((one.value, *one.interval))
    for name, rows in found.items():
        value, low, high = torch.tensor(rows, dtype=torch.float64).T
        mean, spread = value.mean(), value.std()
        yield Coverage(
            metric=name,
            mean=float(mean),
            spread=float(spread),
            width=float((high - low).mean() / 2 / (1.959964 * spread)),
            covered=float(((low <= mean) & (mean <= high)).double().mean()),
        )


def main() -> None:
    """Print one line per case, number of samples and metric, as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    jobs: list[tuple[str, int, tuple[Metric, ...]]] = [
        (case.name, n, METRICS) for n in asked.sizes for case in CASES
    ]
    jobs += [(case.name, 2 * WIDE, ("fd",)) for case in WIDE_CASES]
    print("| samples | n | metric | value | true spread | width | covered |\n|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(asked.processes) as pool:
        for lines in pool.map(_lines, *zip(*((*job, asked.draws) for job in jobs), strict=True)):
            print("\n".join(lines), flush=True)


def _lines(name: str, n: int, metrics: tuple[Metric, ...], draws: int) -> list[str]:
    """Return the table's lines of one case, which goes by its name: functions do not travel to processes."""
    (case,) = (each for each in (*CASES, *WIDE_CASES) if each.name == name)
    return [
        f"| {name} | {n:,} | {one.metric} | {one.mean:.4g} | {one.spread:.2g} | {one.width:.2f} | "
        f"{100 * one.covered:.0f} % |"
        for one in coverage(case, n, draws, metrics)
    ]


if __name__ == "__main__":
    main()
