"""The one diffusion transformer every attention is put into: DiT's shell, attention handed in."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from einops import rearrange
from torch import nn

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.errors import PluginOutputError, UnsupportedError, UserInputError
from attnbench.layers.depthwise import DepthwiseConv, fuse_reparameterised
from attnbench.models.embeddings import (
    LabelEmbedding,
    PatchEmbedding,
    TimestepEmbedding,
    sincos_position_embedding,
)
from attnbench.models.experts import MixtureOfExperts
from attnbench.models.ffn import build_ffn
from attnbench.models.options import resolve_attention
from attnbench.specs import ModelConfig

Sink = Callable[[str, torch.Tensor], None]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
GATES = (2, 5)  # which of the six parts of a block's modulation multiply what it adds to the stream


class Block(nn.Module):
    """x += g1 attention(LN(x)(1+a1)+s1); x += g2 ffn(LN(x)(1+a2)+s2), the six from SiLU(c) (AdaLN-Zero).

    c is the context's conditioning [B, C], or `condition` [B, N, C], each token's own, where that is given.
    """

    def __init__(self, config: ModelConfig, attention: nn.Module, layer_idx: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)
        self.ffn = build_ffn(config.ffn, config.dim, layer_idx)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.stream_conv = IdentityConv(config.dim) if config.stream_conv else None

    def forward(
        self, x: torch.Tensor, context: AttentionContext, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        parts = by_token(self.modulation(context.conditioning if condition is None else condition))
        s1, a1, g1, s2, a2, g2 = parts.chunk(6, dim=-1)  # [B, 1 or N, C]
        mixed = self.attn(modulate(self.norm1(x), s1, a1), context)
        if not isinstance(mixed, torch.Tensor) or mixed.shape != x.shape:
            got = tuple(mixed.shape) if isinstance(mixed, torch.Tensor) else type(mixed).__name__
            raise PluginOutputError(
                f"attention {type(self.attn).__name__} in blocks.{context.layer_idx}.attn returned {got}, "
                f"expected [B, N, C] = {tuple(x.shape)}; fix the backend's module"
            )
        x = x + g1 * mixed
        shown = modulate(self.norm2(x), s2, a2)
        routed = isinstance(self.ffn, MixtureOfExperts)
        x = x + g2 * (self.ffn(shown, context) if routed else self.ffn(shown, context.grid))
        return x if self.stream_conv is None else self.stream_conv(x, context.grid)


class IdentityConv(DepthwiseConv):
    """A depthwise 3x3 convolution on tokens that starts as the identity. Source: DiG's released code."""

    keeps_own_init = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3)
        nn.init.dirac_(self.conv.weight, groups=dim)
        nn.init.zeros_(cast("nn.Parameter", self.conv.bias))


class FinalLayer(nn.Module):
    """LayerNorm, AdaLN shift and scale, Linear to patches: [B, N, C] -> [B, N, p p out_channels].

    Called with c [B, C], or [B, N, C] for a condition of each token's own.
    """

    def __init__(self, dim: int, patch_values: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.linear = nn.Linear(dim, patch_values)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = by_token(self.modulation(c)).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionTransformer(nn.Module):
    """A diffusion transformer on [B, C, H, W] inputs with one attention module per block.

    forward(x [B, C, H, W], t [B] in [0, 1000), y int64 [B]) -> [B, C or 2C, H, W]; `null_label` is
    the class of dropped labels. `recorder(name, tensor)` receives diagnostics, `loss_sink(name,
    scalar)` auxiliary losses, `mean_over_processes(mean)` makes the mean of a part of the batch that of the
    whole, `gather_over_processes` puts the parts side by side; all cost nothing when absent.
    Source: DiT arXiv:2212.09748; shell of all systems in arXiv:2601.13683 (inferred from its GFLOPs).

    Decoupled, the first blocks encode: z = (their tokens) + (embedding of t) is each token's condition in the
    last blocks and the output, which start from an embedding of x of their own; labels reach them through z.
    Attentions there have the context of the others. Source: DDT arXiv:2504.05741; read: its released code
    (MCG-NJU/DDT, decoupled_improved_dit.py) and pages about the paper. Ours: everything else is as without
    it, AdaLN-Zero and the position embedding in both parts; not there are the alignment of the encoder with
    DINOv2 and encoders shared by steps of a sampler.
    """

    def __init__(
        self, config: ModelConfig, grid: tuple[int, int], num_classes: int, attention: list[nn.Module]
    ) -> None:
        super().__init__()
        self.config, self.grid, self.null_label = config, grid, num_classes
        self.out_channels = config.in_channels * (2 if config.learned_variance else 1)
        side = config.patch_size
        self.patch_embed = PatchEmbedding(side, config.in_channels, config.dim)
        self.time_embed = TimestepEmbedding(config.dim)
        self.label_embed = LabelEmbedding(num_classes, config.dim, config.class_dropout)
        self.decoder_embed = None
        if config.decoupled is not None:
            self.decoder_embed = PatchEmbedding(side, config.in_channels, config.dim)
        self.blocks = nn.ModuleList(Block(config, module, n) for n, module in enumerate(attention))
        self.final = FinalLayer(config.dim, side * side * self.out_channels)
        position = position_embedding(config, grid)
        if config.position_embedding == "learned":
            self.position = nn.Parameter(position)
        else:
            self.register_buffer("position", position, persistent=False)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        *,
        recorder: Sink | None = None,
        loss_sink: Sink | None = None,
        mean_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None,
        gather_over_processes: Callable[[torch.Tensor], tuple[torch.Tensor, int]] | None = None,
    ) -> torch.Tensor:
        tokens = self._tokens(self.patch_embed, x)
        time = self.time_embed(t)
        c = time + self.label_embed(y)  # [B, C]
        condition = None
        for layer_idx, block in enumerate(self.blocks):
            if self.decoder_embed is not None and layer_idx == self.config.encoder_depth:
                condition = tokens + time.unsqueeze(1)  # [B, N, C]
                tokens = self._tokens(self.decoder_embed, x)
            context = AttentionContext(
                grid=self.grid,
                timestep=t,
                conditioning=c,
                layer_idx=layer_idx,
                recorder=recorder,
                loss_sink=loss_sink,
                mean_over_processes=mean_over_processes,
                gather_over_processes=gather_over_processes,
            )
            tokens = block(tokens, context) if condition is None else block(tokens, context, condition)
        return self._to_image(self.final(tokens, c if condition is None else condition))

    def _tokens(self, embed: nn.Module, x: torch.Tensor) -> torch.Tensor:
        # a convolution's tokens lie channel by channel, and every sum and LayerNorm after it would copy them
        return embed(x).contiguous() + self.position  # [B, N, C]

    def _to_image(self, patches: torch.Tensor) -> torch.Tensor:
        side = self.config.patch_size
        return rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.grid[0], w=self.grid[1], p=side, q=side
        )


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive layer norm's affine part: x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def by_token(modulation: torch.Tensor) -> torch.Tensor:
    """Return a modulation [B, C] of all tokens as [B, 1, C], and one of each token, [B, N, C], as it is."""
    return modulation.unsqueeze(1) if modulation.ndim == 2 else modulation


def position_embedding(config: ModelConfig, grid: tuple[int, int]) -> torch.Tensor:
    """Return the [N, C] position embedding a recipe starts from."""
    if config.position_embedding == "sincos":
        return sincos_position_embedding(config.dim, grid)
    scale = 0.02 if config.position_embedding == "learned" else 0.0
    return scale * torch.randn(grid[0] * grid[1], config.dim)


def token_grid(config: ModelConfig, input_size: int) -> tuple[int, int]:
    """Return the (rows, columns) of tokens; raises UserInputError when patches do not tile the input."""
    if input_size < 1 or input_size % config.patch_size:
        factor = 8 if config.input == "latent" else 1
        step = config.patch_size * factor
        raise UserInputError(
            f"patch size {config.patch_size} does not divide the {config.input} side {input_size} of model "
            f"{config.name}; choose a resolution that is a multiple of {step} px"
        )
    return (input_size // config.patch_size,) * 2


def build_model(
    config: ModelConfig,
    input_size: int,
    num_classes: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DiffusionTransformer:
    """Build and initialise a model for square inputs of side `input_size` (latent or pixel units).

    Every module is initialised from its own stream keyed by (seed, module name), so that models
    which differ in attention only start from equal weights everywhere else.
    Raises UnsupportedError with the backend's reason, UserInputError on sizes that do not fit.
    """
    grid = token_grid(config, input_size)
    device = torch.device(device)
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{config.name} in {dtype}: models run in {', '.join(map(str, DTYPES))}; fp16 overflows in the "
            "sums of linear attention"
        )
    attention: list[nn.Module] = []
    with device if device.type == "meta" else torch.device("cpu"):  # one stream for every device
        for layer_idx in range(config.depth):
            backend, options = resolve_attention(config.attention_at(layer_idx))
            site = AttentionSite(
                dim=config.dim, num_heads=config.num_heads, grid=grid, layer_idx=layer_idx, depth=config.depth
            )
            reason = backend.supports(site, options, dtype, device)
            if reason:
                raise UnsupportedError(f"{backend.name} at blocks.{layer_idx}: {reason}")
            with seeded(seed, f"blocks.{layer_idx}.attn"):
                attention.append(backend.build(site, options))
        with seeded(seed, "skeleton"):
            model = DiffusionTransformer(config, grid, num_classes, attention)
        initialise(model, seed)
    return model.to(device=device, dtype=dtype)


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw from a stream keyed by (seed, name) and leave torch's global stream as it was."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def initialise(model: DiffusionTransformer, seed: int) -> None:
    """Apply DiT's initialisation: Xavier-uniform linears, N(0, .02) embeddings, zero AdaLN and output."""
    keeps_own = tuple(
        f"{name}." for name, module in model.named_modules() if getattr(module, "keeps_own_init", False)
    )
    for name, module in model.named_modules():
        if f"{name}.".startswith(keeps_own):
            continue
        with seeded(seed, name):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif ".attn" not in name and isinstance(module, nn.Conv2d | MixtureOfExperts):
                module.reset_parameters()
    with seeded(seed, "embeddings"):
        _start_as_linear(model.patch_embed, model.config.dim)
        nn.init.normal_(model.label_embed.table.weight, std=0.02)
        nn.init.normal_(model.time_embed.expand.weight, std=0.02)
        nn.init.normal_(model.time_embed.out.weight, std=0.02)
        if model.decoder_embed is not None:  # last, so that the others start as without it
            _start_as_linear(model.decoder_embed, model.config.dim)
    blocks = cast("list[Block]", list(model.blocks))
    modulations = [model.final.modulation, *(block.modulation for block in blocks)]
    for layer in [model.final.linear, *(cast("nn.Linear", m[-1]) for m in modulations)]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _start_as_linear(embed: nn.Module, dim: int) -> None:
    """Initialise a patch embedding as the linear layer on patches that it is."""
    layer = cast("nn.Conv2d", embed.proj)
    nn.init.xavier_uniform_(layer.weight.view(dim, -1))
    nn.init.zeros_(cast("nn.Parameter", layer.bias))


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Return an eval copy with every re-parameterised part fused."""
    return fuse_reparameterised(model)
