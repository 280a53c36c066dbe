"""How long batches of cached latents take, alone and beside steps of a GPU's length."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from inputs import suite_file

from attnbench.data import load_dataset
from attnbench.data.mapped import map_array
from attnbench.diffusion.objective import build_objective
from attnbench.stages.latents import model_space
from attnbench.stages.latents.encoding import LatentSource
from attnbench.stages.training import batches
from attnbench.stages.training.batches import BatchSchedule, PartMaker, prefetched
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

BATCH, COPIES = 256, 8
CPU = torch.device("cpu")


def latent_source(folder: Path) -> LatentSource:
    """Open the latents; their shard is put into eight files, so that there are 4,096 in 256 MiB."""
    case = load_suite(str(suite_file(folder, batch=BATCH)), []).cases[0]
    workspace = Workspace(root=folder / "store", device=CPU)
    source = model_space.training_source(case, load_dataset(case.data), workspace)
    assert isinstance(source, LatentSource)
    (shard,) = workspace.folder("prepare", case).glob("*.npy")
    copies = [Path(shutil.copy(shard, folder / f"copy-{number}.npy")) for number in range(COPIES)]
    return replace(source, shards=tuple(map(map_array, copies)), labels=source.labels.repeat(COPIES))


def part_maker(source: LatentSource) -> PartMaker:
    """Return the train stage's maker of batches, with dit-s's objective."""
    case = load_suite("subin_256", []).cases[0]
    return PartMaker(
        schedule=BatchSchedule(num_examples=len(source), batch_size=BATCH, seed=0, flip=True),
        source=source,
        objective=build_objective(case.train, learned_variance=True, device=CPU),
        device=CPU,
        null_label=8,
        class_dropout=0.1,
    )


def timed(maker: PartMaker, steps: int, work: Callable[[], object]) -> tuple[float, float, float]:
    """Make steps; return ms of wall and of CPU per step and the share of time waited; the first two apart."""
    waits = started = used = 0.0
    for step, _, waited in prefetched(partial(maker.make, slices=[slice(0, BATCH)]), 0, steps + 2):
        waits += waited
        work()
        if step == 1:  # the first two have nothing before them during which they could be made
            waits, started, used = 0.0, time.perf_counter(), time.process_time()
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    return 1000 * wall / steps, 1000 * cpu / steps, waits / wall


def launching(seconds: float, counts: list[int]) -> None:
    """Launch small operations from Python all the time, as an eager training step on a GPU does."""
    x, count, end = torch.zeros(16), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        x = x + 1.0
        count += 1
    counts.append(count)


def spread(values: Iterable[float], form: str) -> str:
    """Return median and range."""
    found = sorted(values)
    return f"{median(found):{form}} ({found[0]:{form}} to {found[-1]:{form}})"


def alone(maker: PartMaker, rounds: int, steps: int) -> None:
    """Print the time of a batch when nothing else runs, in one thread and in two, in turns."""
    found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
    for turn in range(rounds):
        for threads in (1, 2) if turn % 2 else (2, 1):
            batches.AHEAD = threads
            found[threads].append(timed(maker, steps, lambda: None))
    for threads, rows in found.items():
        wall, cpu = ([row[i] for row in rows] for i in (0, 1))
        print(
            f"  {threads} ahead: ms a batch {spread(wall, '.1f')}, of CPU {spread(cpu, '.1f')}; "
            f"{1000 * BATCH / median(wall):,.0f} images/s; steps shorter than {median(wall):.1f} ms wait"
        )


def beside_steps(maker: PartMaker, rounds: int, steps: int) -> None:
    """Print the share of time waited beside steps that sleep, or launch operations, one and two ahead."""
    found: dict[str, list[float]] = {}
    beside: list[int] = []
    single: list[int] = []
    works = {f"steps that sleep {ms} ms": partial(time.sleep, ms / 1000) for ms in (30, 50, 100)}
    works["steps that launch for 50 ms"] = partial(launching, 0.05, beside)
    for turn in range(rounds):
        for threads in (1, 2) if turn % 2 else (2, 1):
            batches.AHEAD = threads
            for name, work in works.items():
                share = timed(maker, steps, work)[2]
                found.setdefault(f"{threads} ahead, {name}", []).append(100 * share)
        for _ in range(steps):
            launching(0.05, single)
    for name, shares in sorted(found.items()):
        print(f"  {name}: waited {spread(shares, '.2f')} % of the time")
    fewer = 100 * (1 - median(beside) / median(single))
    print(f"  launched meanwhile: {fewer:.1f} % fewer operations than with no loader")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    MAKER = part_maker(latent_source(args.folder))
    print(f"loader: batches of {BATCH} of {len(MAKER.source):,} latents {list(MAKER.source.shape)}")
    timed(MAKER, 20, lambda: None)  # pages into the cache
    alone(MAKER, args.rounds, 60)
    beside_steps(MAKER, max(1, args.rounds - 1), 40)
