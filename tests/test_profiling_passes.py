"""What one pass of each mode and scope does, by the multiply-adds that it executes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnbench.errors import UnsupportedError
from attnbench.models.macs import block_macs, closed_form_macs
from attnbench.profiling.formulas import EXTRA_TORCH_FORMULAS
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload
from attnbench.specs import AttentionSpec, CodecSpec, ModelConfig

CPU = torch.device("cpu")


def workload(attention: str = "linear", **changes: object) -> Workload:
    config = ModelConfig(
        name=attention,
        depth=3,
        dim=32,
        num_heads=2,
        input="pixel",
        in_channels=3,
        learned_variance=bool(changes.pop("learned_variance", False)),
        attention=AttentionSpec(name=attention),
    )
    return Workload(config=config, input_size=8, num_classes=10, **({"batch_size": 2} | changes))


def executed(run: object) -> int:
    """Multiply-adds that torch's counter sees in one pass."""
    counter = FlopCounterMode(display=False, custom_mapping=dict(EXTRA_TORCH_FORMULAS))
    with counter:
        run()
    return counter.get_total_flops() // 2


def forward_macs(asked: Workload) -> int:
    return closed_form_macs(asked.config, asked.input_size).full


@pytest.mark.parametrize(("mode", "images"), [("forward", 2), ("sample", 4)])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_forward_and_guided_step(mode, images, learned_variance):
    """A forward pass runs the batch once, a guided sampler step its double; both keep no graph."""
    asked = workload(mode=mode, learned_variance=learned_variance)
    built = build_pass(asked, CPU)
    assert executed(built.run) == images * forward_macs(asked)
    assert not built.run().requires_grad


def test_training_step():
    """Forward and backward are three forward passes but for what needs no gradient; weights move."""
    asked = workload(mode="train")
    built = build_pass(asked, CPU)
    before = [parameter.detach().clone() for parameter in built.module.parameters()]
    # no gradient goes to the input of the patch embedding, nor to that of the timestep embedding
    first_layers = 2 * (16 * 12 * 32 + 256 * 32)
    assert executed(built.run) == 3 * 2 * forward_macs(asked) - first_layers
    moved = [not torch.equal(a, b) for a, b in zip(before, built.module.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(("scope", "part"), [("attention", "attention"), ("block", "total")])
def test_parts_of_the_middle_block(scope, part):
    """Scope attention and block execute what the closed form says of the middle block."""
    asked = workload(scope=scope)
    counted = getattr(block_macs(asked.config, asked.input_size, 1), part)
    # the modulation's 6 C^2 are once per image, as the closed form has them
    assert executed(build_pass(asked, CPU).run) == 2 * counted.full
    trained = build_pass(asked.model_copy(update={"mode": "train"}), CPU)
    assert 2.4 < executed(trained.run) / (2 * counted.full) <= 3


def test_bf16_is_autocast():
    """As in training and sampling: weights stay in fp32, products run in bf16."""
    built = build_pass(workload(precision="bf16"), CPU)
    assert {p.dtype for p in built.module.parameters()} == {torch.float32}
    assert built.run().dtype == torch.bfloat16
    plain = build_pass(workload(), CPU).run()
    error = (built.run().float() - plain).abs().max() / plain.abs().max()
    assert 0 < error < 0.05  # other numbers, of the same function


def test_end_to_end_decodes():
    """Scope end-to-end hands the latents, without a learned variance, to the decoder."""
    seen = []
    asked = workload(scope="end-to-end", learned_variance=True)
    build_pass(asked, CPU, seen.append).run()
    assert [tuple(latents.shape) for latents in seen] == [(2, 3, 8, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "end-to-end"}, "name it"),
        ({"scope": "end-to-end", "mode": "train", "codec": CodecSpec(path="/nowhere")}, "decodes no images"),
        ({"scope": "block", "mode": "sample"}, "whole models"),
    ],
)
def test_what_does_not_go_together(changes, message):
    """A mode and a scope that mean nothing together are refused by name."""
    with pytest.raises(UnsupportedError, match=message):
        build_pass(workload(**changes), CPU)
