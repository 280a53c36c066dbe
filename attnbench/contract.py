"""What a plugin and the bench say to each other: sites, contexts, backends, extractors.

Letters used in shapes throughout the package: B batch, N tokens, C width, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from attnbench.errors import UserInputError

if TYPE_CHECKING:
    import torch
    from torch import nn

Complexity = Literal["linear", "subquadratic", "quadratic"]
Symmetry = Literal["none", "permutation", "translation"]
Family = Literal["softmax", "compressed", "sparse", "linear", "sequential", "dynamic", "other"]
"""By what an attention saves, or not: softmax over all pairs; over fewer, compressed keys; over chosen
pairs (sparse); feature maps (linear); a state or a filter that runs along the tokens (sequential); routers
that choose by the input or the step (dynamic)."""


class BackendOptions(BaseModel):
    """Base of every backend's options: frozen, strict, numbers finite; a field's docstring documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """Where one attention module is built.

    Raises UserInputError when `num_heads` does not divide `dim` or a size is not positive.
    """

    dim: int
    num_heads: int
    grid: tuple[int, int]
    layer_idx: int = 0
    depth: int = 1

    def __post_init__(self) -> None:
        if min(self.dim, self.num_heads, self.depth, *self.grid) < 1:
            raise UserInputError(f"attention site needs positive sizes, got {self}")
        if self.dim % self.num_heads:
            raise UserInputError(
                f"num_heads must divide dim, got dim={self.dim} and num_heads={self.num_heads}; "
                f"choose one of {[h for h in range(1, self.dim + 1) if self.dim % h == 0]}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens on the grid, N = height x width (row-major)."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Width of one head, D = dim / num_heads."""
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What an attention module may ask for during one forward pass.

    `timestep` is [B] in [0, 1000); `conditioning` is [B, C]. Both sinks cost one `is None` test
    when nobody listens. `mean_over_processes` is the bench's: it takes a mean over this process's images
    and returns that over the images of all processes, differentiable; None where there is one process.
    `gather_over_processes`, too: it returns what every process gave it, [processes, ...], without gradients,
    and the place of this one's.
    """

    grid: tuple[int, int]
    timestep: torch.Tensor | None = None
    conditioning: torch.Tensor | None = None
    layer_idx: int = 0
    recorder: Callable[[str, torch.Tensor], None] | None = None
    loss_sink: Callable[[str, torch.Tensor], None] | None = None
    mean_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None
    gather_over_processes: Callable[[torch.Tensor], tuple[torch.Tensor, int]] | None = None

    def record(self, name: str, tensor: torch.Tensor) -> None:
        """Hand a diagnostic (routing choices, factors, attention maps) to whoever listens."""
        if self.recorder is not None:
            self.recorder(f"blocks.{self.layer_idx}.{name}", tensor.detach())

    def add_loss(self, name: str, value: torch.Tensor) -> None:
        """Add an already weighted scalar to the training loss; ignored outside training.

        A plain mean over images (`0.1 * y.square().mean()`) is right as it is: training averages losses over
        processes. Any other function of the batch takes its means from `batch_mean`.
        """
        if self.loss_sink is not None:
            self.loss_sink(f"blocks.{self.layer_idx}.{name}", value)

    def batch_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over dim 0 of values [B, ...] or [B N, ...], over the images of all processes.

        For auxiliary losses that are functions of means over the batch, such as products of them: with it
        every process computes the loss of the whole batch, and training sees its gradient. In the dtype of
        `values`. Every process holds as many images and must call it as often, with the same shapes, whatever
        the data; in training mode only.
        """
        mean = values.mean(0)
        return mean if self.mean_over_processes is None else self.mean_over_processes(mean)


@dataclass(frozen=True, kw_only=True)
class MacCount:
    """Multiply-adds of a forward pass at batch 1, by kind, so that two conventions are two sums.

    `full` is every multiply-add of matmuls and convolutions that executes in inference form.
    `paper` is the convention of arXiv:2601.13683 (a module-hook counter plus the attention
    matmuls): linear and convolution layers, 2 per element of a LayerNorm or BatchNorm (4 if
    affine), attention matmuls in the cheaper association; raw parameters (routers, routed
    projections) and functional calls are invisible to it.
    Source: spec inferred from Tables 1, 2 and 5 of arXiv:2601.13683; see DESIGN.md.
    """

    linear: int = 0  # nn.Linear and convolution modules: in both counts
    attention: int = 0  # attention matmuls in the association that executes
    attention_cheaper: int | None = None  # ... in the cheaper association; None: the same
    unhooked: int = 0  # multiply-adds on raw parameters or in functional calls: full only
    norm: int = 0  # normalisation, 2 or 4 per element: paper only

    @property
    def full(self) -> int:
        """Multiply-adds that execute."""
        return self.linear + self.attention + self.unhooked

    @property
    def paper(self) -> int:
        """Multiply-adds as the paper prints them."""
        cheaper = self.attention if self.attention_cheaper is None else self.attention_cheaper
        return self.linear + cheaper + self.norm

    def __add__(self, other: MacCount) -> MacCount:
        cheaper = None
        if self.attention_cheaper is not None or other.attention_cheaper is not None:
            cheaper = sum(
                c.attention if c.attention_cheaper is None else c.attention_cheaper for c in (self, other)
            )
        return MacCount(
            linear=self.linear + other.linear,
            attention=self.attention + other.attention,
            attention_cheaper=cheaper,
            unhooked=self.unhooked + other.unhooked,
            norm=self.norm + other.norm,
        )


def _always_supported(
    site: AttentionSite, options: Any, dtype: torch.dtype, device: torch.device
) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class AttentionBackend:
    """One attention variant, as a plugin hands it in.

    `build(site, options)` returns a module mapping ([B, N, C], AttentionContext) to [B, N, C] on
    the site's grid, tokens row-major. `macs(site, options)` is the closed form at batch 1.
    `supports(site, options, dtype, device)` returns None or the reason why not; dtype is fp32, bf16 or
    fp64, the bench asks for no other. The skeleton
    initialises every nn.Linear in the module as DiT does (Xavier-uniform, zero bias), so that shared
    projections start equal; a module with the attribute `keeps_own_init = True` is left as built.
    What it declares is what `attnbench check` measures: `complexity` is that of multiply-adds and of
    activation memory in N; `symmetry` says what the output does when the tokens are permuted, or
    (translation) shifted on the grid, away from its border; `family` is the heading that lists put it
    under; `expected_failures` maps a check to the reason why it fails.
    """

    name: str
    summary: str
    source: str
    build: Callable[[AttentionSite, Any], nn.Module]
    macs: Callable[[AttentionSite, Any], MacCount]
    options: type[BackendOptions] = BackendOptions
    supports: Callable[[AttentionSite, Any, torch.dtype, torch.device], str | None] = _always_supported
    complexity: Complexity = "quadratic"
    symmetry: Symmetry = "none"
    family: Family = "other"
    expected_failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExtractorInputs:
    """What a feature extractor may need to load itself.

    `train_images` is uint8 [N, H, W, C] with `train_labels` int64 [N]; `cache_dir` is a folder the
    extractor may keep trained weights in; `weights` is the user's file or None; `protocol` is one of the
    extractor's `protocols`; `warn` is told what a reader of the scores must know.
    """

    device: torch.device
    seed: int
    cache_dir: Path
    weights: Path | None = None
    protocol: str = "adm"
    train_images: Any = None
    train_labels: Any = None
    num_classes: int = 0
    warn: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a batch of images: pooled [B, F] and, where the network has them, logits and maps.

    `logits` is [B, K]. `spatial` is [B, h w c], the first c channels of feature maps [B, C, h, w] flattened
    in NHWC order; c is the largest number for which h w c <= F (`metrics.spatial.first_channels`).
    """

    pooled: torch.Tensor
    logits: torch.Tensor | None = None
    spatial: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A named network that turns uint8 [B, H, W, C] images into `Features`.

    `suffix` ends every metric's name (`FD-efflite0`); only a suffix of "" may be called FID. `protocols` are
    the ways images may be resized for it: `adm` is the network's own, `clean` is clean-fid's. `identity`
    returns what its features depend on beside name, protocol and code, such as the hash of a weights file:
    cached features of another identity are not reused. `logits` and `spatial` say whether its `Features` have
    them, `takes_weights` whether it reads a file of the user's: a suite that asks for what is not there is
    refused before anything runs.
    """

    name: str
    suffix: str
    summary: str
    source: str
    load: Callable[[ExtractorInputs], Callable[[torch.Tensor], Features]]
    identity: Callable[[ExtractorInputs], str] = lambda inputs: ""
    protocols: tuple[str, ...] = ("adm",)
    logits: bool = True
    spatial: bool = True
    takes_weights: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)
