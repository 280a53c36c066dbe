"""How far apart two samples of one distribution seem: the Frechet distance's bias with n, 512 features."""

from __future__ import annotations

import torch

from attnbench.metrics.gaussian import frechet_distance, statistics

WIDTH = 512


def main() -> None:
    """Print one line per n: the distance between two standard normal samples, whose true distance is 0."""
    generator = torch.Generator().manual_seed(0)
    for n in (500, 2_000, 5_000, 10_000, 20_000, 50_000):
        a, b = (statistics(torch.randn(n, WIDTH, generator=generator)) for _ in range(2))
        print(f"n = {n:6,}: {frechet_distance(a, b):6.2f}")


if __name__ == "__main__":
    main()
