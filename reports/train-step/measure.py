"""Throughput of our training step beside that of the public DiT training step, in one process, interleaved.

The peer is written from timm's blocks after facebookresearch/DiT (models.py, train.py): adaLN-Zero,
AdamW with torch's defaults, Gaussian diffusion with learned variance, weights averaged one by one.
Ours is the trainer of the train stage, with its log, gradient norm and NaN check.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from attnbench.diffusion.ddpm import GaussianDiffusion
from attnbench.models import build_model
from attnbench.models.recipes import recipe
from attnbench.specs import Case, DigitsData, EvaluateSpec, ProfileSpec, SampleSpec, TrainSpec
from attnbench.stages.training.batches import prefetched
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.store import Workspace
from attnbench.torchvision_ops import define_missing_ops

define_missing_ops()
from timm.models.vision_transformer import Attention, Mlp, PatchEmbed  # noqa: E402

SIDE, CHANNELS, CLASSES, DIM, DEPTH, HEADS, PATCH = 32, 4, 1000, 384, 12, 6, 2


def shift_scale(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x (1 + scale) + shift; x [B, N, C], the others [B, C]."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class PeerBlock(nn.Module):
    """A DiT block of timm's Attention and Mlp."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(DIM, num_heads=HEADS, qkv_bias=True)
        self.mlp = Mlp(DIM, 4 * DIM, act_layer=lambda: nn.GELU(approximate="tanh"), drop=0)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 6 * DIM))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        s1, a1, g1, s2, a2, g2 = self.modulation(c).chunk(6, dim=1)
        x = x + g1.unsqueeze(1) * self.attn(shift_scale(self.norms[0](x), s1, a1))
        return x + g2.unsqueeze(1) * self.mlp(shift_scale(self.norms[1](x), s2, a2))


class Peer(nn.Module):
    """DiT-S/2 on 32x32x4 latents with learned variance."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchEmbed(SIDE, PATCH, CHANNELS, DIM)
        self.position = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2, DIM), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, DIM), nn.SiLU(), nn.Linear(DIM, DIM))
        self.labels = nn.Embedding(CLASSES + 1, DIM)
        self.blocks = nn.ModuleList(PeerBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 2 * DIM))
        self.out = nn.Linear(DIM, PATCH * PATCH * 2 * CHANNELS)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rates = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None].float() * rates
        y = torch.where(torch.rand(len(y), device=y.device) < 0.1, CLASSES, y)
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.labels(y)
        x = self.patches(x) + self.position
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.out(shift_scale(self.norm(x), shift, scale))
        grid = SIDE // PATCH
        x = x.reshape(len(x), grid, grid, PATCH, PATCH, 2 * CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), 2 * CHANNELS, SIDE, SIDE)


class PeerStep:
    """One step as the public train.py makes it, on images that are latents already."""

    def __init__(self, args: argparse.Namespace, x: torch.Tensor, y: torch.Tensor) -> None:
        self.args, self.x, self.y = args, x, y
        self.model = Peer().to(args.device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.call = torch.compile(self.model) if args.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0)
        self.process = GaussianDiffusion(learned_variance=True, device=args.device)
        self.loss = 0.0

    def __call__(self) -> None:
        chosen = torch.randint(len(self.x), (self.args.batch,))
        x, y = self.x[chosen].to(self.args.device), self.y[chosen].to(self.args.device)
        t = torch.randint(1000, (len(x),), device=x.device)

        def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.bf16):
                return self.call(x, t, y)

        loss = self.process.training_loss(denoiser, x, t, torch.randn_like(x)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, live in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.mul_(0.9999).add_(live, alpha=1e-4)
        self.loss += loss.item()


class Latents:
    """Latents in memory, as a training source."""

    shape = (CHANNELS, SIDE, SIDE)
    has_posterior = False

    def __init__(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, indices: torch.Tensor, flips: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.x[indices]


def our_step(args: argparse.Namespace, x: torch.Tensor, y: torch.Tensor, folder: Path) -> Trainer:
    """Return the trainer of dit-s with the same batch and precision."""
    case = Case(
        suite="train-step",
        label="dit-s",
        seed=0,
        model=recipe("dit-s"),
        data=DigitsData(),
        train=TrainSpec(
            batch_size=args.batch, precision="bf16" if args.bf16 else "fp32", compile=args.compile, log=[]
        ),
        sample=SampleSpec(),
        evaluate=EvaluateSpec(),
        profile=ProfileSpec(),
    )
    model = build_model(case.model, SIDE, CLASSES, device=args.device)
    workspace = Workspace(root=folder, device=torch.device(args.device))
    return Trainer(case, workspace, model, Latents(x, y), flip=False)


def seconds(work: object, device: str) -> float:
    """Return the time of one call: on a GPU by the wall, the device waited for; on a CPU the process's own.

    CPU time of one thread does not see what else runs on the machine.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    work()  # type: ignore[operator]
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, y = torch.randn(512, CHANNELS, SIDE, SIDE), torch.randint(CLASSES, (512,))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        peer, ours = PeerStep(args, x, y), our_step(args, x, y, Path(folder))
        make = partial(ours.parts.make, slices=[slice(0, args.batch)])
        batches = stack.enter_context(closing(prefetched(make, 0, 10**9)))

        def our_work() -> None:  # as a training does it: threads make batches ahead, on a CPU at our cost
            number, parts, _ = next(batches)
            ours._step(number, parts)

        counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (peer.model, ours.model)]
        print(f"parameters: peer {counts[0]:,}, ours {counts[1]:,}")
        for work in (peer, our_work):
            for _ in range(2):
                work()
        pairs = []
        for turn in range(args.rounds):
            order = (peer, our_work) if turn % 2 else (our_work, peer)
            took = {id(work): seconds(work, args.device) for work in order}
            pairs.append((took[id(peer)], took[id(our_work)]))
        started = time.perf_counter()
        ours.save()
        saved = time.perf_counter() - started
        size = ours.checkpoint_path.stat().st_size / 2**20
    theirs, own = (median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = median(a / b for a, b in pairs)
    print(
        f"peer {args.batch / theirs:.2f} images/s, ours {args.batch / own:.2f} images/s, by CPU time on a CPU"
    )
    print(f"throughput of ours over the peer's, median of {args.rounds} paired rounds: {ratio:.3f}")
    print("rounds:", " ".join(f"{a / b:.3f}" for a, b in pairs))
    print(f"checkpoint: {saved:.2f} s, {size:.0f} MiB")


if __name__ == "__main__":
    main()
