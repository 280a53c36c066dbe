"""Time and memory of the metrics' maths on 10,000 x 2048 features, against what people run today, on the CPU.

    python reports/distances/measure.py [--threads 1] [--rounds 3]
    python reports/distances/measure.py --pr-50k

Ours: statistics of both sets, Frechet distance with influence, kernel distance (100 subsets of 1000) with
influence, precision and recall (k = 3). Theirs, without any uncertainty: FID from numpy's covariance and
scipy's sqrtm; KID from scikit-learn's polynomial_kernel, subset by subset; precision and recall from prdc.
Each round runs every part once, ours and theirs in turn; medians and ratios are printed, and the largest
relative difference of the values. Times are CPU times of the process, which hold on a shared machine; it is
bound to `--threads` cores, as prdc starts threads of its own.
`--pr-50k` takes precision and recall of 50,000 against 50,000 in a fresh process and prints its peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import resource
import statistics as medians
import subprocess
import sys
import time
from collections.abc import Callable

WIDTH, RANK = 2048, 256
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="cores to use (1)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--images", type=int, default=10_000, help="images of each set (10000)")
    parser.add_argument("--pr-50k", action="store_true", help="only precision and recall of 50,000 images")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    ARGS = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(ARGS.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGS.threads])

import torch  # noqa: E402  (after the number of threads)

from attnbench.metrics.gaussian import frechet, statistics  # noqa: E402
from attnbench.metrics.pairwise import pairwise  # noqa: E402


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Return float32 [count, 2048], not negative and correlated, as a network's pooled features are."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + seed)
    spectrum = torch.arange(1, RANK + 1) ** -0.7
    mixing = spectrum[:, None] * torch.randn(RANK, WIDTH, generator=shared)
    offset = 0.3 * torch.randn(WIDTH, generator=shared) + shift
    found = torch.empty(count, WIDTH)
    for rows in found.split(2000):
        latent = torch.randn(len(rows), RANK, generator=own)
        rows.copy_(latent @ mixing + offset).add_(torch.randn(rows.shape, generator=own), alpha=0.3).relu_()
    return found


def ours(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], list[float]]]:
    """Return our three parts; kernel distance, precision and recall are one."""

    def fd() -> list[float]:
        value, _ = frechet(statistics(x), statistics(y), y)
        return [value]

    def pairs() -> list[float]:
        found = pairwise(x, y)
        found.kernel_influence  # noqa: B018 - it is part of the work
        inside = [float(i.double().mean()) for i in (found.sample_inside, found.reference_inside)]
        return [medians.fmean(found.kernel_values), *inside]

    return {"FD": fd, "KD + P/R": pairs}


def theirs(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], list[float]]]:
    """Return the three parts as scipy, scikit-learn and prdc compute them, in float64 where we choose."""
    import numpy as np
    import scipy.linalg
    from prdc import compute_prdc
    from sklearn.metrics.pairwise import polynomial_kernel

    from attnbench.metrics.kernel import draw_subsets

    a, b = x.numpy(), y.numpy()

    def fid() -> list[float]:
        s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        shift = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
        root = scipy.linalg.sqrtm(s1 @ s2).real
        return [float(shift @ shift + np.trace(s1) + np.trace(s2) - 2 * np.trace(root))]

    def kid() -> list[float]:
        values, size = [], 1000
        for i, j in draw_subsets(len(a), len(b), subsets=100, size=size, seed=0):
            p, q = a[i.numpy()].astype(np.float64), b[j.numpy()].astype(np.float64)
            pp, qq, pq = (polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((p, p), (q, q), (p, q)))
            within = pp.sum() - np.trace(pp) + qq.sum() - np.trace(qq)
            values.append(float(within / (size * (size - 1)) - 2 * pq.mean()))
        return [medians.fmean(values)]

    def pr() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):  # prdc prints the sizes
            found = compute_prdc(a, b, nearest_k=3)
        return [float(found["precision"]), float(found["recall"])]

    return {"FID": fid, "KID": kid, "P/R": pr}


def compare(images: int, rounds: int) -> None:
    """Print medians, ratios and the difference of the values."""
    x, y = features(images, 0), features(images, 1, shift=0.02)
    sides = {"ours": ours(x, y), "theirs": theirs(x, y)}
    seconds: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        values = {"ours": [], "theirs": []}
        for side, parts in sides.items():
            for name, part in parts.items():
                began = time.process_time()
                values[side] += part()
                seconds.setdefault(name, []).append(time.process_time() - began)
                print(f"round {number + 1} {side:>6} {name:<9} {seconds[name][-1]:7.2f} s", flush=True)
    took = {name: medians.median(times) for name, times in seconds.items()}
    names = ("Frechet distance", "kernel distance", "precision", "recall")
    for name, mine, other in zip(names, values["ours"], values["theirs"], strict=True):
        print(f"{name}: ours {mine:.9g}, theirs {other:.9g}, relative difference {abs(mine / other - 1):.1e}")
    whole, whole_theirs = took["FD"] + took["KD + P/R"], took["FID"] + took["KID"] + took["P/R"]
    pairs = took["KID"] + took["P/R"]
    print(f"FD:       {took['FD']:6.2f} s, theirs {took['FID']:6.2f} s, ratio {took['FID'] / took['FD']:.2f}")
    print(f"KD + P/R: {took['KD + P/R']:6.2f} s, theirs {pairs:6.2f} s, ratio {pairs / took['KD + P/R']:.2f}")
    print(f"all:      {whole:6.2f} s, theirs {whole_theirs:6.2f} s, ratio {whole_theirs / whole:.2f}")


def precision_recall(images: int) -> None:
    """Print time and this process's peak memory of precision and recall."""
    imported = _peak_mib()
    x, y = features(images, 0), features(images, 1, shift=0.02)
    began = time.process_time()
    found = pairwise(x, y, subsets=None)
    took = time.process_time() - began
    print(
        f"{images:,} x {images:,} x {WIDTH}: precision {found.sample_inside.double().mean():.4f}, "
        f"recall {found.reference_inside.double().mean():.4f}, {took:.0f} s CPU; "
        f"peak {_peak_mib():,.0f} MiB, of which features "
        f"{2 * images * WIDTH * 4 / 2**20:,.0f} and imports {imported:,.0f}"
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def main() -> None:
    """Run what the options ask for."""
    if ARGS.child:
        precision_recall(50_000)
        return
    print(
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{ARGS.threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    if ARGS.pr_50k:
        again = [sys.executable, __file__, "--child", "--threads", str(ARGS.threads)]
        subprocess.run(again, check=True)
    else:
        compare(ARGS.images, ARGS.rounds)


if __name__ == "__main__":
    main()
