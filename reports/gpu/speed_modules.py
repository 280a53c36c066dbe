"""The attentions that `speed.py` times, ours and the peers, their inputs, and one pass of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_course import Record

DIM, HEADS, TOKENS = 384, 6, 32_768


def build(
    subject: str, side: int, images: int, device: str, tiny: bool
) -> tuple[Any, Callable[..., Any], int]:
    """Return module, its call on tokens x [B, N, C], and its multiply-adds at one image (0: not known)."""
    import torch

    dim, heads = (48, 3) if tiny else (DIM, HEADS)
    torch.manual_seed(0)
    if subject == "peer: timm, flash":
        from attnbench.torchvision_ops import define_missing_ops

        define_missing_ops()
        from timm.layers import Attention

        module = Attention(dim, num_heads=heads, qkv_bias=True).to(device)
        return module, module, macs_of("softmax", {}, dim, heads, side)
    if subject == "peer: diffusers Sana":
        from diffusers.models.attention_processor import Attention as Diffusers
        from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

        module = Diffusers(
            dim, heads=heads, dim_head=dim // heads, bias=False, processor=SanaLinearAttnProcessor2_0()
        ).to(device)
        return module, module, macs_of("linear", {}, dim, heads, side)
    return ours(subject, dim, heads, side, images, device)


def ours(
    subject: str, dim: int, heads: int, side: int, images: int, device: str
) -> tuple[Any, Callable[..., Any], int]:
    """Return a backend's module, its call and its multiply-adds."""
    import torch

    from attnbench.contract import AttentionContext, AttentionSite
    from attnbench.errors import UnsupportedError
    from attnbench.models.options import options_of
    from attnbench.plugins import registry

    name, _, mode = subject.partition(" ")
    backend = registry().backend(name)
    options = options_of(backend, {"mode": mode} if mode else {})
    site = AttentionSite(dim=dim, num_heads=heads, grid=(side, side), layer_idx=1, depth=12)
    why_not = backend.supports(site, options, torch.float32, torch.device(device))
    if why_not:
        raise UnsupportedError(why_not)
    module = backend.build(site, options).to(device)
    context = AttentionContext(  # made once: a compiled call must find it as it was
        grid=site.grid,
        timestep=torch.full((images,), 500.0, device=device),
        conditioning=torch.zeros(images, dim, device=device),
        layer_idx=1,
    )

    def call(x: torch.Tensor) -> torch.Tensor:
        return module(x, context)

    return module, call, backend.macs(site, options).full


def macs_of(name: str, options: Record, dim: int, heads: int, side: int) -> int:
    """Return a backend's multiply-adds at one image."""
    from attnbench.contract import AttentionSite
    from attnbench.models.options import options_of
    from attnbench.plugins import registry

    backend = registry().backend(name)
    site = AttentionSite(dim=dim, num_heads=heads, grid=(side, side))
    return backend.macs(site, options_of(backend, options)).full


def pass_of(module: Any, call: Callable[..., Any], x: Any, mode: str) -> Callable[[], Any]:
    """Return one pass under autocast; `train` leaves gradients of input and weights behind."""
    import torch

    if mode == "forward":
        module.eval().requires_grad_(False)

        @torch.no_grad()
        def forward() -> torch.Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return call(x)

        return forward
    module.train().requires_grad_(True)
    x = x.detach().requires_grad_()
    wanted = [x, *module.parameters()]

    def train() -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = call(x)
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        return y.detach()

    return train


def inputs(side: int, device: str, tiny: bool) -> Any:
    """Return tokens x [B, N, C] in fp32: images of side x side tokens that fill a pass."""
    import torch

    images = 2 if tiny else max(1, TOKENS // side**2)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, side**2, 48 if tiny else DIM, generator=generator).to(device)
