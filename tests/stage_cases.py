"""A tiny dataset, model and case for the tests of the train and sample stages."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from attnbench.data.arrays import ArrayImages
from attnbench.models.embeddings import LabelEmbedding
from attnbench.specs import (
    NOISE,
    Case,
    DigitsData,
    EvaluateSpec,
    ModelConfig,
    ProfileSpec,
    SampleSpec,
    TrainSpec,
)
from attnbench.stages import sample, train
from attnbench.stages.interrupts import Stopped
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.names import CHECKPOINT
from attnbench.storage.store import Workspace, read_output

NUM_CLASSES, SIDE = 3, 4


def make_case(
    *,
    train: dict[str, Any] | None = None,
    sample: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    seed: int = 0,
) -> Case:
    """Return a case of ten flow-matching steps, with some settings replaced."""
    flow = (train or {}).get("objective", "flow") == "flow"
    sizes: dict[str, Any] = {"depth": 1, "dim": 8, "num_heads": 1, "input": "pixel", "in_channels": 1}
    return Case(
        suite="test",
        label="case",
        seed=seed,
        model=ModelConfig(name="stub", **(sizes | {"learned_variance": not flow} | (model or {}))),
        data=DigitsData(),
        train=TrainSpec(
            **({"objective": "flow", "steps": 10, "batch_size": 4, "log_every": 4} | (train or {}))
        ),
        sample=SampleSpec(
            **(
                {"noise": NOISE, "sampler": "euler", "num_steps": 3, "per_class": 2, "batch_size": 4}
                | (sample or {})
            )
        ),
        evaluate=EvaluateSpec(kd_subset_size=2, neighbours=1),
        profile=ProfileSpec(),
    )


def make_workspace(root: Path) -> Workspace:
    """Return a workspace on the CPU."""
    return Workspace(root=root, device=torch.device("cpu"))


class StubModel(nn.Module):
    """A denoiser with what real ones have: BatchNorm, label dropout, a time, an auxiliary loss."""

    def __init__(self, config: ModelConfig, num_classes: int, poison: str = "") -> None:
        super().__init__()
        self.null_label, self.poison = num_classes, poison
        channels = config.in_channels * (2 if config.learned_variance else 1)
        self.enter = nn.Conv2d(config.in_channels, config.dim, 3, padding=1)
        self.norm = nn.BatchNorm2d(config.dim)
        self.label_embed = LabelEmbedding(num_classes, config.dim, config.class_dropout)
        self.leave = nn.Conv2d(config.dim, channels, 1)

    def forward(self, x, t, y, *, recorder=None, loss_sink=None):
        embedded = self.label_embed(y) + t[:, None] / 1000
        hidden = self.norm(self.enter(x)) + embedded[:, :, None, None]
        if self.training:  # a layer may draw random numbers of its own
            hidden = hidden + 0.01 * torch.randn(hidden.shape)
        if self.poison == "backward":
            hidden = (hidden * 0).sqrt() + hidden  # the slope of sqrt at 0 is infinite, times 0: NaN
        if loss_sink is not None:
            loss_sink("size", 1e-3 * hidden.square().mean())
        return self.leave(torch.tanh(hidden))


@dataclass
class StubSource:
    """Thirteen examples, one value each; `before_batch` may interfere."""

    shape: tuple[int, int, int] = (1, SIDE, SIDE)
    labels: torch.Tensor = field(default_factory=lambda: torch.arange(13) % NUM_CLASSES)
    before_batch: Callable[[], None] = lambda: None
    has_posterior: bool = False

    def __len__(self) -> int:
        return 13

    def batch(self, indices, flips, draws=None):
        self.before_batch()
        ramp = torch.linspace(-1, 1, SIDE).expand(len(indices), *self.shape)
        ramp = torch.where(flips[:, None, None, None], ramp.flip(-1), ramp)
        return ramp * (indices[:, None, None, None] + 1) / 13


def install(patch: Any, source: StubSource | None = None, poison: str = "") -> None:
    """Put the stubs into the stages; `patch(module, name, value)` is pytest's or plain setattr."""
    source = source or StubSource()

    def build(config, input_size, num_classes, **_):
        return StubModel(config, num_classes, poison)

    def to_images(x: torch.Tensor) -> torch.Tensor:
        return (127.5 * x + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    held_out = ArrayImages(torch.arange(5 * SIDE * SIDE).view(5, SIDE, SIDE, 1).byte(), torch.arange(5) % 3)
    dataset = SimpleNamespace(num_classes=NUM_CLASSES, flip=True, held_out=held_out)
    patch(train, "dataset_of", lambda case, workspace: dataset)
    for stage in (train, sample):
        patch(stage, "build_model", build)
    patch(train, "training_source", lambda case, dataset, workspace: source)
    patch(sample, "fuse_for_inference", lambda model: model)
    patch(sample, "decoder", lambda case, workspace: to_images)


def train_here(root: str, threads: int, settings: dict[str, Any]) -> None:
    """Train the default case with frequent checkpoints; what tests kill. Prints each step done.

    `kill_at` strikes with SIGKILL before that step, `kill_in_save` in that save, when the temporary file is
    there and has not been moved; `slow` seconds are slept at each step, which touches `beat`; files may grow
    to `file_limit` bytes after step 5.
    """
    torch.set_num_threads(threads)
    case = {key: settings.pop(key) for key in ("steps", "checkpoint_every") if key in settings}
    make_step, fsync, saves = Trainer._step, os.fsync, [0]

    def step_or_die(trainer, step, *rest):
        print(step, flush=True)
        if "beat" in settings:
            Path(settings["beat"]).touch()
        if step == settings.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 5 and "file_limit" in settings:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (settings["file_limit"], resource.RLIM_INFINITY))
        time.sleep(settings.get("slow", 0))
        return make_step(trainer, step, *rest)

    def sync_or_die(descriptor):
        saves[0] += ".part" in os.readlink(f"/proc/self/fd/{descriptor}")
        if saves[0] == settings.get("kill_in_save"):
            os.kill(os.getpid(), signal.SIGKILL)
        return fsync(descriptor)

    install(setattr)
    Trainer._step, os.fsync = step_or_die, sync_or_die  # type: ignore[method-assign, assignment]
    try:
        train.run(make_case(train={"checkpoint_every": 3} | case), make_workspace(Path(root)))
    except Stopped as stop:
        print(stop.message, file=sys.stderr)
        raise


def start_training(root: Path, **settings: Any) -> subprocess.Popen[str]:
    """Start `train_here` in a process of its own."""
    threads = str(torch.get_num_threads())  # sums over threads round differently
    path = os.pathsep.join([str(Path(train.__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, __file__, str(root), threads, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    train_here(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))


def trained_bits(root: Path, case) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]]]:
    """Return the final weights (live, averaged, optimizer) and the loss curve."""
    folder = make_workspace(root).folder("train", case)
    weights = load_file(folder / CHECKPOINT) | load_file(folder / train.AVERAGED)
    return weights, read_output(folder).curves["loss"]


def assert_same_training(root_a: Path, root_b: Path, case) -> None:
    """Two finished trainings of one case left the same bytes, curves and weights."""
    folders = [make_workspace(root).folder("train", case) for root in (root_a, root_b)]
    for name in (CHECKPOINT, train.AVERAGED, "train.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    (weights_a, curve_a), (weights_b, curve_b) = trained_bits(root_a, case), trained_bits(root_b, case)
    assert curve_a == curve_b
    assert weights_a.keys() == weights_b.keys()
    assert [name for name in weights_a if not torch.equal(weights_a[name], weights_b[name])] == []
