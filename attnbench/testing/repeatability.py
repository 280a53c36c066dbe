"""Checks that a module is a function of its weights and its image, and of nothing else."""

from __future__ import annotations

import copy
import io

import torch

from attnbench.contract import AttentionContext
from attnbench.testing.outcome import CheckFailedError, require
from attnbench.testing.question import check
from attnbench.testing.subject import SQUARE, OnTensors, Subject, call, relative_error, rounding, seeded


@check("batch-independence")
def batch_independence(subject: Subject) -> str:
    """In eval mode an image gives the same output alone and beside images at other timesteps."""
    site, dtype = subject.exact(SQUARE)
    module, batch = subject.module(site, dtype=dtype), subject.batch(site, 3, dtype=dtype)
    with torch.no_grad():
        together = call(module, batch, site)
        alone = torch.cat([call(module, batch.image(i), site) for i in range(3)])
    error, limit = relative_error(alone, together), rounding(dtype)
    require(error <= limit, f"alone and in a batch differ by {error:.2g}, allowed {limit:.2g} (rounding)")
    return f"relative difference {error:.1e}"


@check("determinism")
def determinism(subject: Subject) -> str:
    """In eval mode the same input gives the same output, bit for bit."""
    site = subject.site(SQUARE)
    module, batch = subject.module(site), subject.batch(site)
    context = AttentionContext(
        grid=site.grid, timestep=batch.timestep, conditioning=batch.conditioning, layer_idx=site.layer_idx
    )
    with seeded(5), torch.no_grad():  # one stream over all calls: randomness must show
        first, *others = (module(batch.x.clone(), context) for _ in range(3))
    require(
        all(torch.equal(first, other) for other in others),
        "three calls in eval mode on one input gave different outputs; draw nothing and keep no state",
    )
    return "three calls, bit for bit"


@check("same-seed")
def same_seed(subject: Subject) -> str:
    """Built twice under one seed, a module has the same weights."""
    site = subject.site(SQUARE)
    first, second = (subject.build(site, seed=6).state_dict() for _ in range(2))
    require(first.keys() == second.keys(), "two builds have different names in their state dicts")
    moved = [name for name, value in first.items() if not _equal(value, second[name])]
    require(not moved, f"two builds under one seed differ in {', '.join(moved)}; draw from torch's generator")
    return f"{len(first)} tensors"


@check("inputs-unchanged")
def inputs_unchanged(subject: Subject) -> str:
    """Neither x nor the context's tensors are written to, forward or backward."""
    site = subject.site(SQUARE)
    for train in (False, True):
        module, batch = subject.module(site, train=train), subject.batch(site)
        leaves = {"x": batch.x, "timestep": batch.timestep, "conditioning": batch.conditioning}
        if train:
            leaves["x"].requires_grad_()
        given = {name: leaf.clone() for name, leaf in leaves.items()}
        before = {name: tensor.detach().clone() for name, tensor in given.items()}
        context = AttentionContext(
            grid=site.grid,
            timestep=given["timestep"],
            conditioning=given["conditioning"],
            layer_idx=site.layer_idx,
        )
        with seeded(3), torch.set_grad_enabled(train):
            y = module(given["x"], context)
            if train:
                y.square().sum().backward()
        written = [name for name, tensor in given.items() if not _equal(tensor.detach(), before[name])]
        require(not written, f"{', '.join(written)} changed in place; write into a copy")
    return "x, timestep, conditioning"


@check("state-dict")
def state_dict(subject: Subject) -> str:
    """After training steps, a module built under another seed loads the state and agrees bit for bit."""
    site = subject.site(SQUARE)
    module, batch = subject.module(site, train=True), subject.batch(site)
    for _ in range(2):  # running statistics move
        call(module, batch, site)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = subject.build(site, seed=7)
    try:
        fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    except RuntimeError as error:
        raise CheckFailedError(f"a fresh module refuses the state: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        y, again = call(module.eval(), batch, site), call(fresh.eval(), batch, site)
    require(
        torch.equal(y, again),
        f"a fresh module with the loaded state differs by {relative_error(again, y):.2g}; "
        "register what it computes with as parameters or buffers",
    )
    return "saved, loaded strictly, bit for bit"


@check("compile")
def compiles(subject: Subject) -> str:
    """torch.compile takes the whole module without a graph break and computes the same."""
    site = subject.site(SQUARE)
    module, batch = OnTensors(subject.module(site, train=True), site), subject.batch(site)
    twin = copy.deepcopy(module)  # a call in training mode moves statistics
    batch.x.requires_grad_()
    torch._dynamo.reset()
    try:
        with seeded(3):
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
            y = compiled(batch.x.clone(), batch.timestep, batch.conditioning)
        y.square().sum().backward()
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CheckFailedError(f"{type(error).__name__}: {first_line}") from error
    finally:
        torch._dynamo.reset()
    with seeded(3):
        expected = twin(batch.x.clone(), batch.timestep, batch.conditioning)
    off, limit = relative_error(y, expected), rounding(torch.float32)
    require(off <= limit, f"compiled and eager differ by {off:.2g}, allowed {limit:.2g} (rounding)")
    return f"one graph, relative difference {off:.1e}"


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, a NaN to itself."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


CHECKS = (batch_independence, determinism, same_seed, inputs_unchanged, state_dict, compiles)
