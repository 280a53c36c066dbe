"""Small models with weights as after a training, run folders, and the command line, for tests of exchange."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench import cli
from attnbench.exchange import Exported
from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.loading import build_unfused
from attnbench.exchange.trained import origins
from attnbench.results import Result, append_result, environment
from attnbench.specs import (
    Case,
    CodecSpec,
    DigitsData,
    EvaluateSpec,
    ImageFolderData,
    ModelConfig,
    ProfileSpec,
    SampleSpec,
    TrainSpec,
)
from attnbench.stages import prepare, train
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.storage.store import Workspace


def model_config(**settings: Any) -> ModelConfig:
    """Return a DiT of two blocks on latents of four channels, with some settings replaced."""
    sizes: dict[str, Any] = {"depth": 2, "dim": 32, "num_heads": 4, "in_channels": 4}
    return ModelConfig(**({"name": "small"} | sizes | settings))


def random_export(config: ModelConfig, *, side: int = 8, num_classes: int = 5, **described: Any) -> Exported:
    """Return a model none of whose tensors is zero, as after a training: gates and outputs matter."""
    description = ExportedConfig(
        model=config,
        input=ModelInput(shape=(config.in_channels, side, side), num_classes=num_classes),
        objective="ddpm",
        backends=origins(config.attention_names()),
    ).model_copy(update=described)
    weights = build_unfused(description).state_dict()
    generator = torch.Generator().manual_seed(1)
    for tensor in weights.values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(
                torch.randn(tensor.shape, generator=generator).abs_().mul_(2.0 if tensor.ndim == 0 else 1)
            )
            signs = torch.randint(0, 2, tensor.shape, generator=generator).mul_(2).sub_(1)
            tensor.mul_(signs if tensor.ndim > 1 else 0.5).div_(fan_in**0.5)
    return Exported(config=description, weights=weights)


def inputs(exported: Exported, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random x, whole timesteps over the full range, and labels with the null class last."""
    generator = torch.Generator().manual_seed(2)
    num_classes = exported.config.input.num_classes
    x = torch.randn(batch, *exported.config.input.shape, generator=generator)
    y = torch.arange(batch) % num_classes
    y[-1] = num_classes
    return x, torch.tensor([0.0, 1.0, 137.0, 500.0, 999.0])[:batch], y


def digits_case(label: str, attention: dict[str, Any], **train_settings: Any) -> Case:
    """Return a case of a few steps on the digits."""
    model = {"in_channels": 1, "input": "pixel", "attention": attention}
    return _case(label, DigitsData(), model, train_settings)


def latent_case(label: str, images: Path, vae: Path) -> Case:
    """Return a case of a few steps on latents 2 x 2 of the images in a folder."""
    codec = CodecSpec(kind="autoencoder-kl", path=vae)
    data = ImageFolderData(path=images, image_size=16, held_out_fraction=0.3, codec=codec)
    return _case(label, data, {"in_channels": 4, "patch_size": 1}, {})


def _case(label: str, data: Any, model: dict[str, Any], train_settings: dict[str, Any]) -> Case:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 8, "checkpoint_every": 1, "lr": 0.01}
    sizes = {"name": "tiny", "depth": 1, "dim": 16, "num_heads": 2}
    return Case(
        suite="small",
        label=label,
        seed=3,
        model=ModelConfig.model_validate(sizes | model),
        data=data,
        train=TrainSpec(**(settings | train_settings)),
        sample=SampleSpec(num_steps=2, per_class=2),
        evaluate=EvaluateSpec(kd_subset_size=2, neighbours=1),
        profile=ProfileSpec(),
    )


def workspace_of(run_dir: Path) -> Workspace:
    """Return the workspace whose store lies beside a run folder."""
    return Workspace(root=run_dir.parent / "store", device=torch.device("cpu"))


def train_case(run_dir: Path, case: Case) -> None:
    """Prepare and train one case, and note it in the run's results as the runner does."""
    prepare.run(case, workspace_of(run_dir))
    train.run(case, workspace_of(run_dir))
    note_case(run_dir, case)


def note_case(run_dir: Path, case: Case) -> None:
    """Append a result of the case to the run's results.jsonl."""
    result = Result(
        case_id=case.id,
        suite=case.suite,
        label=case.label,
        status="ok",
        case=case.model_dump(mode="json"),
        environment=environment(),
        created="2026-01-01T00:00:00Z",
    )
    append_result(run_dir / "results.jsonl", result)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run `attnbench WORDS` in this process, errors and exit codes as a user meets them."""
    monkeypatch.setattr(sys, "argv", ["attnbench", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)
