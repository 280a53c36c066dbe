"""What an evaluation costs beside its network: PNGs to every metric, network time and the rest apart."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from attnbench.evaluation.images import open_images
from attnbench.evaluation.scorer import make_scorer
from attnbench.specs import EvaluateSpec

PHOTOGRAPHS = ("coffee", "cat", "rocket", "astronaut", "immunohistochemistry")


def write_images(folder: Path, count: int, side: int, seed: int) -> Path:
    """Write random crops of scikit-image's photographs as PNG files."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(count):
        photo = getattr(data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        top, left = (int(generator.integers(0, size - side + 1)) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f"{number:05d}.png")
    return folder


def main() -> None:
    """Score one set against another and print the share of the time that is not the network's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="in each set")
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            write_images(Path(folder) / name, options.images, options.side, i) for i, name in enumerate("ab")
        ]
        scorer = make_scorer(
            EvaluateSpec(kd_subset_size=min(1000, options.images)),
            Path(folder) / "cache",
            torch.device("cpu"),
        )
        network, spent = scorer.cache.network, [0.0]

        def timed(images: torch.Tensor) -> object:
            started = time.process_time()
            found = network(images)
            spent[0] += time.process_time() - started
            return found

        scorer.cache.__dict__["network"] = timed
        started = time.process_time()
        reference = scorer.reference_from(open_images(sets[0]))
        scorer.measure(reference, open_images(sets[1]))
        whole = time.process_time() - started
    share = 100 * (whole - spent[0]) / spent[0]
    print(f"{2 * options.images} PNGs of {options.side} px, every metric with its interval, one thread:")
    print(f"network {spent[0]:.1f} s, all {whole:.1f} s of CPU time: {share:.1f} % beside the network")


if __name__ == "__main__":
    main()
