"""Checks of cost: declared multiply-adds against two counters, and the declared complexity as measured."""

from __future__ import annotations

import itertools
from math import log

import torch
from torch import nn

from attnbench.contract import AttentionSite
from attnbench.layers.depthwise import fuse_reparameterised
from attnbench.profiling.counters import check_agreement, count_with_fvcore, count_with_torch
from attnbench.testing.outcome import NotApplicableError, require
from attnbench.testing.question import check
from attnbench.testing.subject import ODD, SQUARE, Grid, OnTensors, Subject, call, site_of

META = torch.device("meta")
# Exponents of N. Measured ones of a linear cost are 1.00; N log N measures below 1.15 at these sizes.
LINEAR_AT_MOST, QUADRATIC_AT_LEAST, QUADRATIC_AT_MOST = 1.1, 1.9, 2.1
# Nothing is computed on the meta device. At 4096 tokens and a width near 16, what is quadratic costs
# over a hundred times the projections, so the last two sizes show the slope.
COUNTED: tuple[tuple[Grid, ...], ...] = (((64, 64), (128, 128)), ((56, 56), (112, 112)))
LARGER: tuple[Grid, ...] = ((16, 16), (32, 32), (14, 14), (28, 28))
# A wrong closed form can be right where all heads are narrower than there are tokens, or always three. So
# it is asked of heads that are wider, too, and of four and one, each at the smallest site that is supported.
FEW_TOKENS: tuple[Grid, ...] = ((2, 3), (4, 4), (7, 7), (8, 8), (14, 14), (16, 16))
SEVERAL_HEADS = (*((16 * 4**n, 4) for n in range(1, 4)), *((16 * 4**n, 2) for n in range(1, 4)))
ONE_HEAD = ((12, 1), *((2**n, 1) for n in range(4, 10)))
KEPT: tuple[tuple[Grid, ...], ...] = (
    ((8, 8), (16, 16), (32, 32)),
    ((7, 7), (14, 14), (28, 28)),
    ((16, 16), (32, 32)),
)


@check("macs")
def macs(subject: Subject) -> str:
    """The closed form is what two counters see, to 0.1 %, for N below and above D, one head and several."""
    sites = _meta_sites(subject)
    for site in sites:
        module, inputs = _on_meta(subject, site)
        closed = subject.record.macs(site, subject.options).full
        by_fvcore, by_torch = count_with_fvcore(module, inputs).macs, count_with_torch(module, inputs).macs
        try:
            check_agreement(closed, by_fvcore, by_torch)
        except Exception as error:
            error.add_note(f"grid {site.grid}, dim {site.dim}, num_heads {site.num_heads}")
            raise
    told = (f"{site.num_tokens}/{site.head_dim}{'' if site.num_heads > 1 else ' (1 head)'}" for site in sites)
    return f"N/D {', '.join(told)}"


def _meta_sites(subject: Subject) -> list[AttentionSite]:
    """Return what is supported of a square, an odd and a larger grid, and of wide heads and one head."""
    sites, refusal = [], None
    for grids in (SQUARE, ODD, LARGER):
        try:
            sites.append(subject.site(grids, device=META))
        except NotApplicableError as error:
            refusal = error
    for widths, wider in ((SEVERAL_HEADS, True), (ONE_HEAD, True), (ONE_HEAD, False)):
        fitting = (
            site
            for site in (site_of(*width, grid) for grid in FEW_TOKENS for width in widths)
            if (site.head_dim > site.num_tokens if wider else site.head_dim < site.num_tokens)
            and subject.refusal(site, device=META) is None
        )
        sites.extend(itertools.islice(fitting, 1))
    if not sites and refusal:
        raise refusal
    return list(dict.fromkeys(sites))


def _on_meta(subject: Subject, site: AttentionSite) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Build in inference form on the meta device, with inputs of one image."""
    module = OnTensors(fuse_reparameterised(subject.build(site, device=META)), site).eval()
    with META:
        x = torch.empty(1, site.num_tokens, site.dim)
        return module, (x, torch.empty(1), torch.empty(1, site.dim))


@check("macs-scaling")
def macs_scaling(subject: Subject) -> str:
    """Multiply-adds grow with the tokens as `complexity` declares, neither faster nor slower."""
    declared, sites = subject.record.complexity, subject.sites(COUNTED, device=META)
    counts = [count_with_torch(*_on_meta(subject, site)).macs for site in sites]
    exponent = _exponent(sites, counts)
    told = f"multiply-adds grow as N^{exponent:.2f} from {sites[-2].num_tokens} to {sites[-1].num_tokens}"
    _at_most(exponent, declared, told)
    require(
        declared != "quadratic" or exponent >= QUADRATIC_AT_LEAST,
        f"{told}, but the declared complexity is quadratic; declare "
        f"{'linear' if exponent <= LINEAR_AT_MOST else 'subquadratic'}",
    )
    return told


@check("memory-scaling")
def memory_scaling(subject: Subject) -> str:
    """What is kept for the backward pass grows with the tokens no faster than `complexity` declares.

    An upper bound only: a fused softmax keeps O(N) although it computes O(N^2).
    """
    sites = subject.sites(KEPT)
    exponent = _exponent(sites, [_saved_bytes(subject, site) for site in sites])
    told = f"activations grow as N^{exponent:.2f} from {sites[-2].num_tokens} to {sites[-1].num_tokens}"
    _at_most(exponent, subject.record.complexity, told)
    return told


def _at_most(exponent: float, declared: str, told: str) -> None:
    limit = {
        "linear": LINEAR_AT_MOST,
        "subquadratic": QUADRATIC_AT_LEAST,
        "quadratic": QUADRATIC_AT_MOST,
    }[declared]
    require(exponent <= limit, f"{told}, but {declared} allows at most N^{limit}; declare what it is")


def _exponent(sites: list[AttentionSite], costs: list[int]) -> float:
    """Slope in log-log over the last two sizes, where smaller terms weigh least."""
    if not all(costs):
        return 0.0
    return log(costs[-1] / costs[-2]) / log(sites[-1].num_tokens / sites[-2].num_tokens)


def _saved_bytes(subject: Subject, site: AttentionSite) -> int:
    """Bytes autograd keeps for the backward pass of one image: each storage once, no weights."""
    module, batch = subject.module(site, train=True), subject.batch(site, 1)
    state = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storage keeps its address from reuse

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage
        return tensor

    batch.x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(module, batch, site)
    del y
    return sum(storage.nbytes() for storage in kept.values())


CHECKS = (macs, macs_scaling, memory_scaling)
