"""A process that works on a stage with others: `python -m attnbench.stages.worker`, started by rank 0."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnbench.errors import AttnbenchError
from attnbench.specs import Case
from attnbench.stages.distributed import READY, World, joined
from attnbench.stages.interrupts import SIGNALS
from attnbench.stages.sample import draw_part
from attnbench.stages.train import train_case
from attnbench.storage.store import Workspace

PARTS: dict[str, Callable[[Case, Workspace, World], object]] = {"train": train_case, "sample": draw_part}

ORPHANED = 3


def end_with_parent() -> None:
    """End this process when its standard input closes: the process that started it is gone or done."""
    sys.stdin.read()
    os._exit(ORPHANED)  # the main thread may hang in a collective that will never end


def serve(request: dict[str, Any]) -> None:
    """Take part in one stage of one case."""
    torch.set_num_threads(request["threads"])
    case = Case.model_validate_json(json.dumps(request["case"]))
    device, world = torch.device(request["device"]), World(rank=request["rank"], size=request["size"])
    workspace = Workspace(root=Path(request["root"]), device=device, processes=world.size)
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    with joined(world, Path(request["store"]), device):
        PARTS[request["part"]](case, workspace, world)


def main() -> None:
    """Read one request from the first line of stdin and serve it."""
    for number in SIGNALS:  # where all processes are told to stop, rank 0 must be able to save first
        signal.signal(number, signal.SIG_IGN)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        serve(request)
    except AttnbenchError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
