"""The CIFAR-10 study at 256 tokens as far as the time carries; it goes on where the last time ended.

    python reports/gpu/cifar10.py --data cifar10-jpeg.tar.xz [--budget 150] [--from FOLDER]
    python reports/gpu/cifar10.py --dry-run        # a few made images and steps on the CPU, to try the script

Prepares the images (about 10 s), takes up the parts of an earlier run where --from names their folder, and
runs suites/cifar10.yaml in bf16 with fewer steps, several cases at once on one GPU: an eager step of so small
a model launches small kernels, which one process cannot do fast enough to fill it. At the end of the budget
each saves its checkpoint. The store then goes to $OUT/cifar10-store.tar.gz.00, .01, ... in parts of 15 MiB:
put them into a folder, give it as --from, and the same command goes on, here or on another machine. The table
comes last. It takes the minutes that --budget gives it; a case of 4,000 steps is guessed at one to two.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_course import RESERVE_S, ROOT, Record, columns, out_folder, reason, say

sys.path.insert(0, str(ROOT))

SUITE = ROOT / "suites" / "cifar10.yaml"
COMMAND = "import sys; from attnbench.cli import main; main()"
PART_BYTES, PARTS = 15 << 20, 3
NAME = "cifar10-store.tar.gz"
SAVE_S = 25.0  # from SIGTERM to a checkpoint on disk, at the most
TOGETHER = 3  # cases at once
CUDA = ["train.precision=bf16", "sample.batch_size=500", "train.checkpoint_every=500"]
TINY = [
    *("train.steps=2", "train.batch_size=4", "train.held_out_images=0", "train.checkpoint_every=1"),
    *(
        "sample.num_steps=2",
        "sample.per_class=4",
        "evaluate.metrics=[kd]",
        "evaluate.kd_subset_size=4",
        "evaluate.class_accuracy=false",
    ),
]


def attnbench(*words: str) -> list[str]:
    """Return the words of a command of this checkout."""
    return [sys.executable, "-c", COMMAND, *words]


def environment(work: Path) -> dict[str, str]:
    """Return the environment of its processes: this checkout first.

    Where the package is not installed, a folder says its version, as an installation would.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        importlib.metadata.version("attnbench")
    except importlib.metadata.PackageNotFoundError:
        from attnbench import __version__

        told = work / "metadata" / f"attnbench-{__version__}.dist-info" / "METADATA"
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(f"Metadata-Version: 2.1\nName: attnbench\nVersion: {__version__}\n")
        paths.append(str(work / "metadata"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def made_images(folder: Path) -> Path:
    """Write a few noise images of two classes, training and test, for the dry run."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{number}.png")
    return folder


def prepare(data: Path, to: Path, settings: dict[str, str]) -> None:
    """Make the training set, or go on with it, or find it finished; raises CalledProcessError."""
    words = attnbench("data", "prepare", str(data), "--to", str(to), "--image-size", "32")
    subprocess.run(words, check=True, env=settings, stdout=subprocess.DEVNULL)


def unpack(folder: Path, runs: Path) -> None:
    """Put the store of an earlier run back in its place."""
    parts = sorted(folder.glob(f"{NAME}.*"))
    if not parts:
        raise SystemExit(
            f"--from {folder}: no file {NAME}.00 there; name the folder of an earlier run's parts"
        )
    whole = runs / NAME
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(runs, filter="data")
    whole.unlink()


@contextlib.contextmanager
def ended_with_us() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Give a list of processes none of which outlives the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for one in processes:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)  # its own session: the command and its cases
                one.wait()


def run(words: list[str], settings: dict[str, str], together: int, budget_s: float, log: Path) -> str:
    """Run the suite in several processes that share its cases; stop all when the time is up."""
    end = time.monotonic() + budget_s
    with log.open("a") as file, ended_with_us() as processes:
        for _ in range(together):
            processes.append(
                subprocess.Popen(words, env=settings, stdout=file, stderr=file, start_new_session=True)
            )
            time.sleep(2 if together > 1 else 0)  # the first writes what all share
        while any(one.poll() is None for one in processes) and time.monotonic() < end:
            time.sleep(0.2)
        running = [one for one in processes if one.poll() is None]
        for one in running:
            one.send_signal(signal.SIGTERM)
        last = time.monotonic() + SAVE_S
        for one in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(max(0.1, last - time.monotonic()))
    codes = [one.returncode for one in processes]
    return f"stopped at the end of the time, exit codes {codes}" if running else f"ended, exit codes {codes}"


def kept_files(runs: Path) -> list[Path]:
    """Return what another machine needs to go on, most important first.

    A finished training goes on from nothing: its checkpoint stays behind, its averaged weights do not.
    """
    files = [path for path in runs.rglob("*") if path.is_file() and path.name != "lock"]
    finished = {path.parent for path in files if path.name == "done.json"}

    def rank(path: Path) -> int:
        relative = path.relative_to(runs).parts
        if relative[0] != "store":
            return 0
        if relative[1] in ("train", "evaluate", "cells"):
            return 1
        return 2

    wanted = [
        path
        for path in files
        if not (path.name.startswith("checkpoint") and path.parent in finished) and path.name != NAME
    ]
    return sorted(wanted, key=lambda path: (rank(path), path.stat().st_size))


def pack(runs: Path, out: Path) -> str:
    """Write the store in parts that come back from the machine; say what did not fit."""
    archive_path = runs.parent / NAME
    left_out, room = 0, PARTS * PART_BYTES
    with tarfile.open(archive_path, "w:gz", compresslevel=1) as archive:
        for path in kept_files(runs):
            size = path.stat().st_size  # as if nothing shrank: weights hardly do
            if size > room:
                left_out += 1
                continue
            room -= size
            archive.add(path, arcname=str(path.relative_to(runs)))
    with archive_path.open("rb") as file:
        for number in range(PARTS):
            part = file.read(PART_BYTES)
            if part:
                (out / f"{NAME}.{number:02d}").write_bytes(part)
    archive_path.unlink()
    return f"{left_out} files left out for want of room" if left_out else "the whole store"


def rows(runs: Path, overrides: list[str]) -> list[Record]:
    """Return how far each case has come."""
    import torch

    from attnbench.storage.names import RESULTS, TRAIN_LOG
    from attnbench.storage.run_folders import read_run
    from attnbench.storage.store import Workspace
    from attnbench.suite.loading import load_suite

    workspace = Workspace(root=runs / "store", device=torch.device("cpu"))
    folder = runs / "cifar10"
    results = (
        {one.label: one for one in read_run(folder, runs).results} if (folder / RESULTS).exists() else {}
    )
    found = []
    for case in load_suite(SUITE, overrides).cases:
        log = runs / "store" / "train" / case.key("train") / TRAIN_LOG
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        last: Record = lines[-1] if lines else {}
        finished = workspace.finished(log.parent) is not None if log.parent.is_dir() else False
        told: Record = {"case": case.label, "steps": last.get("step", 0), "loss": last.get("loss")}
        held_out = next((one["held_out_loss"] for one in reversed(lines) if one.get("held_out_loss")), None)
        told["held_out"] = sum(held_out) / len(held_out) if held_out else None
        told["training"] = "finished" if finished else "unfinished" if lines else "not begun"
        result = results.get(case.label)
        measured = {one.name: one.value for one in result.measurements} if result is not None else {}
        told["status"] = result.status if result is not None else ""
        told |= {name: value for name, value in measured.items() if name.startswith(("FD", "KD"))}
        found.append(told)
    return found


def table(found: list[Record], steps: int) -> str:
    """Return the cases with their steps, losses and distances."""
    names = list(dict.fromkeys(name for one in found for name in one))
    head = [f"steps of {steps}" if name == "steps" else name for name in names]
    return columns([head, *([one.get(name) for name in names] for one in found)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="CIFAR-10 as image files: a folder or a tar")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds, from start to table")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    parser.add_argument("--from", dest="earlier", type=Path, help="folder with an earlier run's parts")
    parser.add_argument("--work", type=Path, help="where set and store lie; by default in /tmp")
    parser.add_argument("--dry-run", action="store_true", help="made images, two steps, on the CPU")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end, out = time.monotonic() + args.budget - RESERVE_S, out_folder()
    work = args.work or Path("/tmp/attnbench-cifar10")  # the same everywhere: keys hold the path of the data
    runs, prepared = work / "runs", work / "cifar10"
    runs.mkdir(parents=True, exist_ok=True)
    if args.data is None and not args.dry_run:
        parser.error("--data: name CIFAR-10 as image files, a folder or a tar (suites/cifar10.yaml says how)")
    overrides = [f"data.path={prepared}", "profile.measure=[macs, params]"]
    overrides += TINY if args.dry_run else [*CUDA, f"train.steps={args.steps}"]
    steps = 2 if args.dry_run else args.steps
    told: dict[str, Any] = {}
    try:
        if args.earlier is not None:
            unpack(args.earlier, runs)
        settings = environment(work)
        prepare(made_images(work / "images") if args.dry_run else args.data, prepared, settings)
        words = attnbench(
            "run", str(SUITE), "--runs", str(runs), "--device", "cpu" if args.dry_run else "cuda"
        )
        for text in overrides:
            words += ["-o", text]
        words += ["--case", "softmax"] if args.dry_run else []
        left = 600.0 if args.dry_run else end - time.monotonic() - SAVE_S
        told["run"] = run(words, settings, 1 if args.dry_run else TOGETHER, left, out / "cifar10.log")
        told["packed"] = pack(runs, out)
        found = rows(runs, overrides)
    except Exception as error:  # noqa: BLE001 - what there is comes back all the same
        told["error"], found = reason(error), []
        if "packed" not in told:
            told["packed"] = pack(runs, out)
    (out / "cifar10.json").write_text(json.dumps({**told, "cases": found}, indent=1) + "\n")
    for name, text in told.items():
        say(f"{name}: {text}")
    if found:
        say(table(found, steps))
    return int("error" in told or (args.dry_run and found[0]["status"] != "ok"))


if __name__ == "__main__":
    sys.exit(main())
