"""Every built-in attention in a block under torch.compile: one graph, and none again for a second batch."""

from __future__ import annotations

import pytest
import torch

from attnbench.models import build_model, fuse_for_inference
from attnbench.models.recipes import resolve
from attnbench.plugins import registry
from attnbench.testing.subject import relative_error, rounding, seeded

SIDE = 16  # 64 tokens: no default option of a backend needs more
BREAKS = {
    # every read of a timestep on the host, to choose its number of mediators, ends a graph: at two images
    # in one block the comparisons and the gathers of both groups make nine
    "mediators": 9
}
CASES = [
    (name, options)
    for name, provided in registry().backends.items()
    if provided.origin == "built-in"
    for options in ([{"mode": "token"}, {"mode": "map"}] if name == "dydila" else [{}])
]
IDS = [" ".join([name, *options.values()]) for name, options in CASES]


def tiny(name, options):
    """A model of one block whose zero-initialised layers are undone."""
    model = build_model(
        resolve("tiny-dit", {"depth": 1, "attention": {"name": name, "options": options}}), SIDE, 10
    )
    with torch.no_grad(), seeded(1):
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def batch(seed):
    """Two images at an early and a late time, with their labels."""
    with seeded(seed):
        return torch.randn(2, 1, SIDE, SIDE), torch.tensor([30.0, 970.0]), torch.tensor([1, 7])


def sink():
    """What a training hands in for auxiliary losses, anew for each pass: a closure that appends."""
    losses = []

    def keep(name, value):
        losses.append(value)

    return keep


def breaks(model, grad, **sinks):
    """Graph breaks of one pass; torch explains by compiling as far as graphs, and running them."""
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        found = torch._dynamo.explain(model)(*batch(2), **sinks)
    torch._dynamo.reset()
    return found.graph_break_count, [str(reason.reason) for reason in found.break_reasons]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_training_compiles(name, options):
    """As a training compiles it, with its sink: declared breaks at most, and no second compilation."""
    model = tiny(name, options).train()
    declared = "compile" in registry().backend(name).expected_failures
    assert declared == (name in BREAKS)
    if declared:
        count, reasons = breaks(model, True, loss_sink=sink())
        assert count <= BREAKS[name]
        assert all(reason.startswith("Data dependent operator") for reason in reasons)
        return
    with seeded(3):
        expected = model(*batch(2), loss_sink=sink())
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with seeded(3):
            y = compiled(*batch(2), loss_sink=sink())
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*batch(4), loss_sink=sink())
    finally:
        torch._dynamo.reset()
    assert relative_error(y, expected) <= rounding(torch.float32)


@pytest.mark.slow  # half a minute over all attentions, and it differs from training by fused parts alone
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_sampling_compiles(name, options):
    """As sampling and the profile compile it, fused and without gradients."""
    count, _ = breaks(fuse_for_inference(tiny(name, options)), False)
    assert count <= BREAKS.get(name, 0)


def test_a_break_is_found():
    """The count is not zero for a model that reads a number on the host."""
    model = tiny("softmax", {})
    attention = model.blocks[0].attn

    class Reads(torch.nn.Module):
        def forward(self, x, context):
            y = attention(x, context)
            return y if float(y.sum()) > 0 else y + 0.0

    model.blocks[0].attn = Reads()
    count, _ = breaks(model, False)
    assert count > 0
