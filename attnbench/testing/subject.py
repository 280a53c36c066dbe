"""The backend under test: sites it supports, modules built on them, and what they are called with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnbench.contract import AttentionBackend, AttentionContext, AttentionSite, BackendOptions
from attnbench.testing.outcome import NotApplicableError

Grid = tuple[int, int]

# Tried in this order until the backend supports one: small first; then sides that are multiples of
# 8 (windows of 8, strides) and of 7 (windows of 7, 49 agent tokens).
SQUARE: tuple[Grid, ...] = ((4, 4), (8, 8), (7, 7), (16, 16), (14, 14))
WIDE: tuple[Grid, ...] = ((3, 5), (4, 8), (7, 9), (8, 16), (7, 14))
TALL: tuple[Grid, ...] = ((5, 3), (8, 4), (9, 7), (16, 8), (14, 7))
ODD: tuple[Grid, ...] = ((7, 9), (7, 7), (9, 15), (21, 21))
SMALLEST: tuple[Grid, ...] = ((2, 3), (3, 3), *SQUARE)
# (dim, num_heads): heads that do not divide the tokens first, then powers of two
WIDTHS: tuple[tuple[int, int], ...] = ((12, 3), (16, 2), (32, 2), (64, 2), (128, 2))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of one call: x [B, N, C], timestep [B] in [0, 1000), conditioning [B, C]."""

    x: torch.Tensor
    timestep: torch.Tensor
    conditioning: torch.Tensor

    def image(self, index: int) -> Batch:
        """Return one image as a batch of one."""
        return self.images(index, index + 1)

    def images(self, first: int, end: int) -> Batch:
        """Return images `first` to `end - 1`."""
        some = slice(first, end)
        return Batch(x=self.x[some], timestep=self.timestep[some], conditioning=self.conditioning[some])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backend with one set of options on one device."""

    record: AttentionBackend
    options: BackendOptions
    device: torch.device

    def refusal(
        self, site: AttentionSite, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> str | None:
        """Return why the backend refuses, or None.

        A `supports` that raises refuses, too: the check named `supports` is the one to report it.
        """
        try:
            return self.record.supports(site, self.options, dtype, device or self.device) or None
        except Exception as error:  # noqa: BLE001 - a stranger may raise anything
            return f"supports raised {type(error).__name__}: {error}"

    def site(
        self,
        grids: Sequence[Grid],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        widths: Sequence[tuple[int, int]] = WIDTHS,
    ) -> AttentionSite:
        """Return the first supported site; raises NotApplicableError with the first refusal."""
        return self.sites([[grid] for grid in grids], dtype, device, widths)[0]

    def sites(
        self,
        families: Sequence[Sequence[Grid]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        widths: Sequence[tuple[int, int]] = WIDTHS,
    ) -> list[AttentionSite]:
        """Return sites of one width on all grids of the first family that is supported as a whole."""
        refusals: list[str] = []
        for dim, num_heads in widths:
            for family in families:
                found = [site_of(dim, num_heads, grid) for grid in family]
                reasons = [reason for site in found if (reason := self.refusal(site, dtype, device))]
                if not reasons:
                    return found
                refusals += reasons
        raise NotApplicableError(f"supports refuses every site tried: {refusals[0]}")

    def exact(self, grids: Sequence[Grid]) -> tuple[AttentionSite, torch.dtype]:
        """Return a supported site and the most exact dtype that is supported there."""
        with contextlib.suppress(NotApplicableError):
            return self.site(grids, torch.float64), torch.float64
        return self.site(grids), torch.float32

    def build(
        self,
        site: AttentionSite,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> nn.Module:
        """Build a module from its own random stream, as left by its author, in training mode."""
        device = device or self.device
        with seeded(seed), torch.device("meta") if device.type == "meta" else contextlib.nullcontext():
            module = self.record.build(site, self.options)
        return module.to(device=device, dtype=dtype).train()

    def module(
        self, site: AttentionSite, *, seed: int = 0, dtype: torch.dtype = torch.float32, train: bool = False
    ) -> nn.Module:
        """Build a module and move every parameter off its special initial value (a zero hides much)."""
        module = self.build(site, seed=seed, dtype=dtype)
        with seeded(seed + 1), torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter))
        return module.train(train)

    def batch(
        self, site: AttentionSite, images: int = 2, *, dtype: torch.dtype = torch.float32, seed: int = 2
    ) -> Batch:
        """Draw images at different timesteps, on the device and in `dtype` (the timestep stays fp32)."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return noise.to(self.device, dtype)

        return Batch(
            x=draw(images, site.num_tokens, site.dim),
            timestep=torch.linspace(20.0, 980.0, images, device=self.device),
            conditioning=draw(images, site.dim),
        )


def site_of(dim: int, num_heads: int, grid: Grid) -> AttentionSite:
    """Return a site in the second of three blocks."""
    return AttentionSite(dim=dim, num_heads=num_heads, grid=grid, layer_idx=1, depth=3)


def call(
    module: nn.Module, batch: Batch, site: AttentionSite, *, seed: int = 3, **context: Any
) -> torch.Tensor:
    """Run a module on a copy of x, as the skeleton does: every call draws from the random stream of `seed`.

    `context` adds to or replaces fields of the AttentionContext.
    """
    fields: dict[str, Any] = {
        "grid": site.grid,
        "timestep": batch.timestep,
        "conditioning": batch.conditioning,
        "layer_idx": site.layer_idx,
    }
    with seeded(seed):
        return module(batch.x.clone(), AttentionContext(**(fields | context)))


class OnTensors(nn.Module):
    """A module that takes tensors alone, as counters and compilers want it; makes its own context."""

    def __init__(self, module: nn.Module, site: AttentionSite) -> None:
        super().__init__()
        self.module, self.grid, self.layer_idx = module, site.grid, site.layer_idx

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        context = AttentionContext(
            grid=self.grid, timestep=timestep, conditioning=conditioning, layer_idx=self.layer_idx
        )
        return self.module(x, context)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a stream of its own and leave torch's global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; infinite where shapes differ or NaN appears."""
    if actual.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().clamp_min(1e-30)
    error = ((actual.double() - expected.double()).abs().max() / scale).item()
    return error if error == error else float("inf")


def rounding(dtype: torch.dtype) -> float:
    """Allowed relative error of two orders of the same sums: 2^14 roundings of `dtype`."""
    return 2**14 * torch.finfo(dtype).eps
