"""Trainings of seconds that one process and several processes can be compared on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attnbench.models.recipes import recipe
from attnbench.specs import (
    AttentionSpec,
    Case,
    DigitsData,
    EvaluateSpec,
    ProfileSpec,
    SampleSpec,
    TrainSpec,
)
from attnbench.stages import train
from attnbench.storage.store import Workspace

# Adam divides each gradient by its own size: where a gradient is rounding noise alone, so is its sign, and
# two trainings may then differ by up to twice the rate per step. Elsewhere they differ by fp32 rounding.
EPS, STEPS, LR = torch.finfo(torch.float32).eps, 6, 1e-3


def digits_case(attention: str = "softmax", *, options: dict | None = None, **settings) -> Case:
    """Return a case of six steps on the digits, of a model of two blocks."""
    spec = AttentionSpec(name=attention, options=options or {})
    sizes = {"depth": 2, "dim": 16, "num_heads": 2, "attention": spec}
    defaults = {"objective": "flow", "steps": STEPS, "batch_size": 8, "lr": LR, "log_every": 2}
    defaults["ema_decay"] = 0.5  # an average that follows the weights within these steps
    return Case(
        suite="test",
        label="case",
        seed=0,
        model=recipe("tiny-dit").model_copy(update=sizes),
        data=DigitsData(),
        train=TrainSpec(**(defaults | settings)),
        sample=SampleSpec(sampler="euler", num_steps=2),
        evaluate=EvaluateSpec(kd_subset_size=2, neighbours=1),
        profile=ProfileSpec(),
    )


def trained(root: Path, case: Case, processes: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train and return the final checkpoint's tensors and the losses."""
    workspace = Workspace(root=root, device=torch.device("cpu"), processes=processes)
    output = train.run(case, workspace)
    weights = load_file(workspace.folder("train", case) / "checkpoint.safetensors")
    return weights, [loss for _, loss in output.curves["loss"]]


def assert_same_but_for_rounding(
    one: tuple[dict[str, torch.Tensor], list[float]],
    two: tuple[dict[str, torch.Tensor], list[float]],
    steps: int = STEPS,
) -> None:
    """Compare losses (means of 8 losses of 64 pixels, some steps), weights and what else there is."""
    (weights_one, losses_one), (weights_two, losses_two) = one, two
    assert losses_two == pytest.approx(losses_one, rel=1e3 * EPS)
    assert {n: t.shape for n, t in weights_one.items()} == {n: t.shape for n, t in weights_two.items()}
    for group in {name.partition("/")[0] for name in weights_one} - {"optimizer"}:  # model, ema, ema-DECAY
        names = [name for name in weights_one if name.startswith(f"{group}/")]
        apart = torch.cat([(weights_one[n] - weights_two[n]).abs().double().flatten() for n in names])
        assert apart.max() <= 2 * LR * steps, group
        assert (apart > 1e3 * EPS).double().mean() < 0.01, group
    for kind in ("step", "exp_avg", "exp_avg_sq"):
        names = [name for name in weights_one if name.startswith("optimizer/") and name.endswith(f"/{kind}")]
        one_, two_ = (torch.cat([w[n].double().flatten() for n in names]) for w in (weights_one, weights_two))
        # gradients of weights that differ by rounding, and here and there by Adam's sign of it
        assert (one_ - two_).norm() <= (0 if kind == "step" else 1e-2) * one_.norm(), kind
