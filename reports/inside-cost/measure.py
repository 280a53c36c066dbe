"""What it costs to look at class separation and at routers beside what a case does anyway.

    python reports/inside-cost/measure.py             # under two minutes on a quiet machine

CPU time of one thread. Features are random, since no time here depends on what they are; models are randomly
initialised. Writes `results.json` and prints the tables last.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnbench.diffusion.objective import build_objective
from attnbench.evaluation.close_classes import closest_classes, images_each, measure_separation
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.reference import Provenance, reference_of
from attnbench.evaluation.scores import measure
from attnbench.models import build_model
from attnbench.models.recipes import recipe
from attnbench.specs import AttentionSpec, EvaluateSpec, ModelConfig, TrainSpec
from attnbench.stages.training.batches import MicroBatch
from attnbench.stages.training.log import RecordedStatistics
from attnbench.stages.training.loss import TrainingLoss
from attnbench.stages.training.router_balance import RouterBalance

HERE = Path(__file__).resolve().parent
SAMPLES, WIDTH = 10_000, 1280  # of EfficientNet-Lite0, the default network
ROUNDS = 3
CPU = torch.device("cpu")


def seconds(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the median CPU time of some work in this process."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def features(seed: int, classes: int, *, width: int = WIDTH, count: int = SAMPLES, apart: float = 1.0) -> Any:
    """Return features whose class means differ at random, and their labels, classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    drawn = torch.randn(count, width, generator=generator) + apart * means[labels]
    digests = torch.randint(0, 256, (count, 16), dtype=torch.uint8, generator=generator)
    return ExtractedFeatures(pooled=drawn, digests=digests), labels


def evaluation() -> dict[str, Any]:
    """Time the metrics of 10,000 samples and what class separation adds to them."""
    (real, labels), (samples, _) = features(1, 10), features(2, 10)
    names = [str(label) for label in range(1000)]
    seen = Provenance(extractor="x", protocol="adm", identity="", height=1, width=1, channels=1)
    reference = reference_of("real", real, seen)
    settings = EvaluateSpec(metrics=["fd", "kd", "precision", "recall"])
    classes = closest_classes(real.pooled, labels, 10)
    each = images_each(labels, classes)
    thousand, own = features(3, 1000)
    found = {
        "metrics_s": seconds(lambda: measure(settings, "x", reference, samples), 1),
        "separation_s": seconds(lambda: measure_separation(samples.pooled, labels, classes, each, names)),
        "choice_of_10_s": seconds(lambda: closest_classes(real.pooled, labels, 10)),
        "choice_of_1000_s": seconds(lambda: closest_classes(thousand.pooled, own, 1000)),
    }
    return {**found, "share_percent": 100 * found["separation_s"] / found["metrics_s"]}


def planted() -> list[dict[str, Any]]:
    """Measure classes of known distance: what the two numbers say, and how much they depend on n."""
    rows = []
    for apart in (0.0, 0.1, 0.15, 0.2, 0.4):
        drawn, labels = features(4, 5, width=128, count=500, apart=apart)
        row: dict[str, Any] = {"apart": apart}
        for each in (10, 35, 100):
            knn, silhouette = measure_separation(drawn.pooled, labels, range(5), each, list("abcde"))
            row[str(each)] = [knn.value, silhouette.value]
        rows.append(row)
    return rows


def training(name: str, side: int, channels: int, batch: int, log_every: int, rounds: int) -> dict[str, Any]:
    """Time a step with its backward pass, and what is done with the records of a logged one."""
    attention = AttentionSpec(name="dydila", options={"mode": "token"})
    changes = {"attention": attention, "learned_variance": False, "in_channels": channels}
    config: ModelConfig = recipe(name).model_copy(update=changes)
    model = build_model(config, side, 10).train()
    settings = TrainSpec(objective="flow", steps=1000, log_every=log_every)
    loss = TrainingLoss(
        model, build_objective(settings, learned_variance=False, device=CPU), settings, CPU, 1
    )
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(batch, channels, side, side, generator=generator) for _ in range(2))
    times = torch.rand(batch, generator=generator)
    part = MicroBatch(first=0, x0=x, noise=noise, times=times, labels=torch.arange(batch) % 10)
    kept: list[tuple[str, torch.Tensor]] = []
    loss(part, lambda what, tensor: kept.append((what, tensor)))

    def record() -> None:
        heard = RecordedStatistics(batch)
        for what, tensor in kept:
            heard(what, tensor)
        heard.summary()
        RouterBalance({}, config, settings).add(log_every, heard.choices())

    step, recorded = seconds(lambda: loss(part).backward(), rounds), seconds(record, 20)
    return {
        "model": name,
        "records": len(kept),
        "step_ms": 1000 * step,
        "recorded_ms": 1000 * recorded,
        "log_every": log_every,
        "share_percent": 100 * recorded / step / log_every,
    }


def main() -> None:
    """Measure, write, print."""
    torch.set_num_threads(1)
    found = {
        "evaluation": evaluation(),
        "planted": planted(),
        "training": [
            training("tiny-dit", 8, 1, 128, 20, 7),
            training("dydi-lit-s", 16, 4, 8, 50, 3),
        ],
        "torch": torch.__version__,
    }
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    e = found["evaluation"]
    print(f"10,000 samples of {WIDTH} features: metrics {e['metrics_s']:.2f} s, class separation "
          f"{e['separation_s']:.3f} s ({e['share_percent']:.2f} %)")  # fmt: skip
    print(f"once for all cases of the data, the closest of 10 classes {e['choice_of_10_s']:.2f} s, "
          f"of 1,000 classes {e['choice_of_1000_s']:.2f} s")  # fmt: skip
    print("\nclass means apart | 10 of each | 35 of each | 100 of each (kNN accuracy, silhouette)")
    for row in found["planted"]:
        shown = " | ".join("{:.2f}, {:+.3f}".format(*row[n]) for n in ("10", "35", "100"))
        print(f"{row['apart']:.2f} | {shown}")
    print("\nmodel | records | step | logged step more by | every | share of training")
    for t in found["training"]:
        print(f"{t['model']} | {t['records']} | {t['step_ms']:.0f} ms | {t['recorded_ms']:.2f} ms | "
              f"{t['log_every']} | {t['share_percent']:.4f} %")  # fmt: skip


if __name__ == "__main__":
    main()
