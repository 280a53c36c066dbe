"""A process that works on a stage with others: `python -m attnbench.stages.worker`, started by rank 0."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnbench.errors import AttnbenchError
from attnbench.processes import ParentProcess
from attnbench.specs import Case
from attnbench.stages.distributed import LeftToFirstError, Said, World, joined
from attnbench.stages.failures import keep_traceback
from attnbench.stages.interrupts import SIGNALS
from attnbench.stages.sample import draw_part
from attnbench.stages.train import train_case
from attnbench.storage.store import Workspace

PARTS: dict[str, Callable[[Case, Workspace, World], object]] = {"train": train_case, "sample": draw_part}


def serve(request: dict[str, Any], parent: ParentProcess) -> None:
    """Take part in one stage of one case."""
    torch.set_num_threads(request["threads"])
    case = Case.model_validate_json(json.dumps(request["case"]))
    device, here = torch.device(request["device"]), tuple(request["here"])
    world = World(rank=request["rank"], size=request["size"], here=here)
    workspace = Workspace(root=Path(request["root"]), device=device, processes=world.size)
    parent.reply(Said(event="ready").model_dump())
    with joined(world, request["rendezvous"], device):
        try:
            PARTS[request["part"]](case, workspace, world)
        except LeftToFirstError:
            pass
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            traceback.print_exc()
            said = Said(event="failed", error=f"{type(error).__name__}: {error}")
            if not isinstance(error, AttnbenchError):
                kept = keep_traceback(error, workspace.folder(request["part"], case), world.rank)
                said = said.model_copy(update={"traceback": kept})
            parent.reply(said.model_dump())
            sys.stderr.flush()
            os._exit(1)  # leaving the others in good order may take for ever
        parent.reply(Said(event="done").model_dump())


def main() -> None:
    """Serve one request of rank 0."""
    for number in SIGNALS:  # where all processes are told to stop, rank 0 must be able to save first
        signal.signal(number, signal.SIG_IGN)
    parent = ParentProcess()
    serve(json.loads(parent.request()), parent)


if __name__ == "__main__":
    main()
