"""A made-up but plausible suite of seven cases: one failed, one with a hostile label."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import Conditions, ProfileRow, to_measurements
from attnbench.results import Environment, Measurement, Result

HOSTILE = "x|y $x$ <script>alert(1)</script> [red]r[/red] `c` *b*"
ENVIRONMENT = Environment(
    python="3.11.9",
    platform="Linux-6.1-x86_64",
    cpu="Some CPU @ 2.50GHz",
    cpu_count=4,
    threads=2,
    memory_gib=15.6,
    device="cpu",
    packages={"attnbench": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.3.1"},
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
)
LABELS = ("softmax", "linear", "focused", "agent(num_agents=4)", "dydila(mode=token)", HOSTILE)


def make_result(label: str, index: int = 0, side: int = 8, **changes: object) -> Result:
    """Return one finished case; `index` shifts every number."""
    fields: dict[str, object] = {
        "case_id": f"case-{index}",
        "suite": "quick",
        "label": label,
        "axes": {"attention": label},
        "status": "ok",
        "measurements": _measurements(index, side),
        "curves": {"loss": _loss(index)},
        "artefacts": {"grid": f"cases/{index}/grid.png"},
        "case": _case(label, index),
        "environment": ENVIRONMENT,
        "created": "2025-06-01T12:00:00Z",
    }
    return Result.model_validate(fields | changes)


def make_suite(run_dir: Path | None = None) -> list[Result]:
    """Return six finished cases and a failed one; writes their grids where a folder is given."""
    results = [make_result(label, index) for index, label in enumerate(LABELS)]
    failed = make_result("dydila(mode=map)", len(LABELS)).model_copy(
        update={
            "status": "failed",
            "reason": "NonFiniteError: NaN after blocks.2.attention in step 118\nlower the learning rate",
            "artefacts": {},
            "measurements": [m for m in _measurements(6, 8) if m.name == "params" or "@" in m.name],
            "curves": {"loss": [*_loss(6)[:12], (118.0, math.nan)]},
        }
    )
    if run_dir is not None:
        for index in range(len(results)):
            write_grid(run_dir / f"cases/{index}/grid.png", index)
    return [*results, failed]


def with_measurement(result: Result, *changed: Measurement) -> Result:
    """Return a result with some measurements replaced."""
    names = {m.name for m in changed}
    kept = [m for m in result.measurements if m.name not in names]
    return result.model_copy(update={"measurements": [*kept, *changed]})


def with_profile(result: Result, row: ProfileRow) -> Result:
    """Return a result whose cost is that of the row."""
    return with_measurement(result, *to_measurements(row))


def without_rounds(result: Result) -> Result:
    """Return a result as version 1 of the format had it: latencies as one list of samples, no live memory."""
    kept = [m for m in result.measurements if not m.name.startswith("live_memory_mib")]
    fields = {"rounds": [], "clean_rounds": [], "round_processes": [], "session": "", "interval": None}
    old = [
        m.model_copy(update={**fields, "values": [t for r in m.rounds for t in r]}) if m.rounds else m
        for m in kept
    ]
    return result.model_copy(update={"format": 1, "measurements": old})


def write_grid(path: Path, seed: int) -> None:
    """Write ten rows of eight noisy 8x8 squares as a PNG."""
    noise = np.random.default_rng(seed).integers(0, 255, (80, 64), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)


def profile_row(index: int, side: int, **changes: object) -> ProfileRow:
    """Return what a profiling session leaves of one case: rounds end by the clock and rows by their interval.

    So no two rounds need have the same number of samples, nor two rows of rounds. Samples of one round share
    the machine's mood of that round (the same for all cases of a session) and one of their own.
    """
    rng, machine = random.Random(index), random.Random(f"machine at {side}")
    rounds = []
    for _ in range(9 + 2 * index % 5):
        mood = machine.gauss(1, 0.02) * rng.gauss(1, 0.005)
        level = (2.4 + 0.35 * index) * mood
        latency = [level * rng.gauss(1, 0.01) for _ in range(rng.randint(18, 31))]
        latency[rng.randrange(len(latency))] *= 3
        rounds.append(Round(latency_ms=latency, cpu_time_ms=[1.9 * t for t in latency]))
    fields: dict[str, object] = {
        "model": f"model {index}",
        "resolution": side,
        "tokens": side**2 // 4,
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 1,
        "session": f"session at {side}",
        "conditions": Conditions(threads=2),
        "params": 612_345 + 10_240 * index,
        "macs_paper": 7_400_000 + 200_000 * index,
        "macs_full": 7_900_000 + 400_000 * index,
        "rounds": rounds,
        "stopped": "narrow",
        "peak_memory_mib": 412.5 + 3 * index,
        "extra_memory_mib": 5.25 + 0.5 * index,
        "live_memory_mib": 4.125 + 0.25 * index,
    }
    return ProfileRow.model_validate(fields | changes)


def disturbed_rounds(rounds: Sequence[Round], which: Iterable[int]) -> list[Round]:
    """Return the rounds, those given having waited for a core and taken half as long again."""
    which = set(which)
    return [
        Round(
            latency_ms=[1.5 * t for t in r.latency_ms],
            cpu_time_ms=r.cpu_time_ms,
            waited_share=[0.3] * len(r.latency_ms),
        )
        if i in which
        else r
        for i, r in enumerate(rounds)
    ]


def _measurements(index: int, side: int) -> list[Measurement]:
    rng = random.Random(index)
    steps = [55.0 + 12 * index + rng.gauss(0, 1) for _ in range(40)]
    quality = {
        "FD-digits": 8.4 + 1.3 * index,
        "KD-digits": 0.0123 + 0.004 * index,
        "IS-digits": 9.31 - 0.08 * index,
        "P-digits": 0.841 - 0.02 * index,
        "R-digits": 0.705 + 0.01 * index,
    }
    floor = {"FD-digits": 2.13, "KD-digits": -0.0004, "IS-digits": 9.62, "P-digits": 0.902, "R-digits": 0.897}
    return [
        *to_measurements(profile_row(index, side)),
        Measurement(name="steps", values=[400.0]),
        Measurement(name="train_time_s", unit="s", values=[22.0 + 5 * index]),
        Measurement(name="step_time_ms", unit="ms", values=steps, better="lower"),
        Measurement(name="final_loss", values=[0.1512 + 0.004 * index], better="lower"),
        Measurement(name="sample_time_s", unit="s", values=[3.1 + 0.4 * index]),
        Measurement(name="images_per_s", unit="images/s", values=[500 / (3.1 + 0.4 * index)]),
        *(Measurement(name=name, values=[value], n=500) for name, value in quality.items()),
        Measurement(name="KD-digits std", values=[0.0011], n=500),
        *(Measurement(name=f"floor:{name}", values=[value], n=360) for name, value in floor.items()),
        Measurement(name="class_accuracy", values=[0.981 - 0.012 * index], n=500, better="higher"),
        Measurement(name="class_accuracy_real", values=[0.964], n=360, note="a small seeded CNN"),
        Measurement(name="router_entropy", unit="nat", values=[1.21 + index / 50], note="over <blocks>"),
    ]


def _loss(index: int) -> list[tuple[float, float]]:
    rng = random.Random(100 + index)
    return [
        (float(step), 0.15 + 0.004 * index + 1.4 * math.exp(-step / (28 + 6 * index)) + rng.gauss(0, 0.006))
        for step in range(10, 401, 10)
    ]


def _case(label: str, index: int) -> dict[str, object]:
    return {
        "suite": "quick",
        "label": label,
        "seed": 0,
        "model": {"depth": 4, "dim": 96, "num_heads": 4, "attention": {"name": label, "options": {}}},
        "data": {"name": "digits"},
        "train": {"objective": "flow", "steps": 400, "lr": 2e-3, "ema_decay": 0.99, "grad_clip": None},
        "sample": {"sampler": "euler", "num_steps": 50, "guidance_scale": 1.0},
        "profile": {"resolutions": None, "rounds": 6},
    }
