"""Routed choices in blocks of rows: the same numbers and gradients as the formula, in whatever blocks."""

from __future__ import annotations

import pytest
import torch

from attnbench.layers import DepthwiseConv, power_focus, routed_difference, routed_focus, routing, row_blocks

ROWS, WIDTH, CHOICES = 37, 12, 5


def drawn(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return rows, some of them without a positive entry, and a router for one or two of them."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    x[:3] = -x[:3].abs()
    weight = torch.randn(2 * WIDTH, CHOICES, generator=generator, dtype=torch.float64)
    values = 1 + 2 * torch.rand(CHOICES, generator=generator, dtype=torch.float64)
    found = {"x": x, "y": y, "weight": weight, "values": values}
    return {name: t.to(dtype).requires_grad_() for name, t in found.items()}


def outcome(what: str, training: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return what a routed function gives, and all gradients."""
    given = drawn(dtype)
    if what == "focus":
        y, index = routed_focus(given["x"], given["weight"][:WIDTH], given["values"], training)
    else:
        y, index, _ = routed_difference(given["x"], given["y"], given["weight"], given["values"], training)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y))
    return [y.detach(), index.double(), *(t.grad for t in given.values() if t.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", ["frozen", "straight_through"])
@pytest.mark.parametrize("what", ["focus", "difference"])
def test_blocks_of_rows_give_what_the_formula_gives(monkeypatch, what, training, dtype):
    """Three blocks, the last one shorter; in half precision up to a few roundings of the results."""
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 16 * WIDTH)
    assert len(list(row_blocks.row_blocks(ROWS, WIDTH))) == 3
    blocks = outcome(what, training, dtype)
    monkeypatch.setattr(routing, "by_blocks", lambda x: False)
    formula = outcome(what, training, dtype)
    assert len(blocks) == len(formula)
    rounding = torch.finfo(dtype).eps
    for ours, theirs in zip(blocks, formula, strict=True):
        # a result is rounded once in each form, and sums of 37 rows or 12 columns before that: 2^6 roundings
        limit = 2**6 * rounding * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=limit)


def test_phi_keeps_no_power_for_its_backward_pass():
    """Beside z, which is there anyway, autograd holds a few scalars per row."""
    z, gamma = torch.randn(64, 256, requires_grad=True), torch.full((64, 1), 2.5, requires_grad=True)
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() != z.untyped_storage().data_ptr():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        power_focus(z, gamma)
    assert kept
    assert sum(kept) <= 4 * 64


def test_an_image_alone_is_convolved_as_among_others():
    """Bit for bit: a batch of one once went another way, for its batch dimension may have any stride."""
    torch.manual_seed(0)
    conv, qkv = DepthwiseConv(48, 3), torch.randn(2, 64, 3 * 48)
    v = qkv[..., 96:]
    torch.testing.assert_close(conv(v[:1], (8, 8)), conv(v, (8, 8))[:1], rtol=0, atol=0)
