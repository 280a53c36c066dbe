"""One process that makes training steps of whichever attnbench its PYTHONPATH names, as it is told.

Reads a JSON object a line: {"build": {...}} or {"steps": n}; answers each with a line: the CPU seconds of
every step, and the loss after the last. Runs with this build and with the one it is compared to, whose
modules lie elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

CLASSES = {"tiny-dit": 10, "dit-s": 1000}
SIDES = {"tiny-dit": 8, "dit-s": 32}
EXAMPLES = 512


def first_of(*names: str) -> Any:
    """Import the first of several modules that there is."""
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


class Cached:
    """Examples in memory, as a training source: what a training on cached latents or small images reads."""

    has_posterior = False

    def __init__(self, channels: int, side: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = (channels, side, side)
        self.x = torch.randn(EXAMPLES, *self.shape, generator=generator)
        self.labels = torch.randint(classes, (EXAMPLES,), generator=generator)

    def __len__(self) -> int:
        return EXAMPLES

    def batch(
        self, indices: torch.Tensor, flips: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.x[indices]


class Steps:
    """A training's steps, one at a time, with the CPU time of each; threads that make batches count."""

    def __init__(self, asked: dict[str, Any]) -> None:
        trainer_module = first_of("attnbench.stages.training.trainer", "attnbench.stages.trainer")
        batches = first_of("attnbench.stages.training.batches", "attnbench.stages.batches")
        store = first_of("attnbench.storage.store", "attnbench.stages.store")
        specs = importlib.import_module("attnbench.specs")
        recipe = asked["recipe"]
        config = importlib.import_module("attnbench.models.recipes").resolve(
            recipe, {"attention": asked["attention"]}
        )
        case = specs.Case(
            suite="training-step",
            label=recipe,
            seed=0,
            model=config,
            data=specs.DigitsData(),
            train=specs.TrainSpec(log=[], **asked["train"]),
            sample=specs.SampleSpec(),
            evaluate=specs.EvaluateSpec(),
            profile=specs.ProfileSpec(),
        )
        side, classes, batch = SIDES[recipe], CLASSES[recipe], asked["train"]["batch_size"]
        model = importlib.import_module("attnbench.models").build_model(config, side, classes)
        self.folder = tempfile.TemporaryDirectory()
        workspace = store.Workspace(root=Path(self.folder.name), device=torch.device("cpu"))
        source = Cached(config.in_channels, side, classes)
        self.trainer = trainer_module.Trainer(case, workspace, model, source, flip=False)
        make = partial(self.trainer.parts.make, slices=[slice(0, batch)])
        self.batches: Iterator[Any] = batches.prefetched(make, 0, 10**9)
        self.loss = 0.0

    def make(self, count: int) -> list[float]:
        """Make some steps; return the CPU seconds of each."""
        seconds = []
        for _ in range(count):
            started = time.process_time()
            number, parts, _ = next(self.batches)
            self.loss = self.trainer._step(number, parts)[0]
            seconds.append(time.process_time() - started)
        return seconds

    def close(self) -> None:
        """Wait for the threads that make batches."""
        self.batches.close()  # type: ignore[attr-defined]
        self.folder.cleanup()


def main() -> None:
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    steps: Steps | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "build" in asked:
                if steps is not None:
                    steps.close()
                    steps = None
                steps = Steps(asked["build"])
            else:
                assert steps is not None
                answer = {"seconds": steps.make(asked["steps"]), "loss": steps.loss}
        except Exception as error:  # noqa: BLE001 - a row with its reason; the others are still wanted
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
