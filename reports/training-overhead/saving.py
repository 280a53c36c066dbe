"""What a checkpoint and a line of the log take, beside ten minutes of training."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from statistics import median

import torch
from inputs import suite_file

from attnbench.data import load_dataset
from attnbench.diffusion.noise import fork_rng
from attnbench.specs import Case
from attnbench.stages.latents import model_space
from attnbench.stages.train import initial_model
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.log import LogRecord, TrainingLog
from attnbench.stages.training.loss_curve import Timing
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

CPU = torch.device("cpu")
RUN_S = 600


def make_trainer(case: Case, folder: Path) -> Trainer:
    """Return a trainer on the latents, after one step: its optimizer holds its moments."""
    workspace = Workspace(root=folder / "store", device=CPU)
    dataset = load_dataset(case.data)
    source = model_space.training_source(case, dataset, workspace)
    model = initial_model(case, ModelInput(shape=source.shape, num_classes=dataset.num_classes), CPU)
    trainer = Trainer(case, workspace, model, source, flip=True)
    trainer.train_until(1)
    return trainer


def checkpoints(model: str, folder: Path, rounds: int) -> None:
    """Print the seconds of a checkpoint, and its part of ten minutes at the default settings."""
    case = load_suite(str(suite_file(folder, batch=2)), [f"model={model}"]).cases[0]
    with fork_rng(CPU):
        trainer = make_trainer(case, folder)
        rows = []
        for _ in range(rounds):
            started, used = time.perf_counter(), time.process_time()
            trainer.save()
            rows.append((time.perf_counter() - started, time.process_time() - used))
    path = trainer.checkpoint_path
    (fastest, _), (wall, _), (slowest, _) = min(rows), sorted(rows)[len(rows) // 2], max(rows)
    minutes = case.train.checkpoint_minutes
    print(
        f"  {model}: {path.stat().st_size / 2**20:,.0f} MiB in {wall:.2f} s "
        f"({fastest:.2f} to {slowest:.2f}), CPU {median(row[1] for row in rows):.2f} s; "
        f"one in {minutes:.0f} minutes: {100 * wall / (60 * minutes):.2f} %"
    )
    for file in path.parent.glob("*.safetensors"):
        file.unlink()


def log_lines(folder: Path, rounds: int) -> None:
    """Print the time of a log point: a record as large as DyDi-LiT-S's, and a line of the clock."""
    case = load_suite(str(suite_file(folder, batch=256)), []).cases[0]
    shares: dict[str, dict[str, float | list[float]]] = {
        f"blocks.{block}.attention.{name}": {"share": [0.123456789] * 8}
        for block in range(12)
        for name in ("query", "key", "query_kernel", "key_kernel", "factor")
    }
    (folder / "log").mkdir()
    log = TrainingLog(folder / "log", kinds=case.train.log, label="cell")
    times = []
    for step in range(200 * rounds):
        started = time.perf_counter()
        log.write(LogRecord(step=step, loss=0.123456789, grad_norm=0.1, lr=1e-4, recorded=shares))
        log.write_timing(Timing(step=step, steps=50, seconds=5.0, data_wait_s=0.0, is_log_point=True))
        times.append(time.perf_counter() - started)
    log.close()
    point, slow = 1000 * median(times), 1000 * sorted(times)[int(0.99 * len(times))]
    print(
        f"  log point: {point:.2f} ms (99th percentile {slow:.2f}); one in {case.train.log_every} steps: "
        f"{point / case.train.log_every:.4f} ms a step, "
        f"{100 * point / case.train.log_every / 30:.3f} % of steps of 30 ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["dit-s", "dit-b", "dit-l"])
    args = parser.parse_args()
    print(f"saving: checkpoints and log of a run of {RUN_S // 60} minutes, default settings")
    for name in args.models:
        checkpoints(name, args.folder, args.rounds)
    log_lines(args.folder, args.rounds)
    print(f"  peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
