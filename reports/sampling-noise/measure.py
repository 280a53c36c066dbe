"""What the noise of sampling costs on one core, of what it consists, and which share of sampling it is.

    python reports/sampling-noise/measure.py

Rates by CPU time of the process, one thread, medians of rounds in turns: `ziggurat` is what every version
before `sample.noise` drew with (unchanged, so this build holds both), `box-muller` what is drawn today,
`torch.randn` a sequential generator that knows no samples. `fused` is a Philox of half the width and
Box-Muller, compiled by torch into one vectorised loop where there is a C++ compiler: about what a core can
do. Writes its tables to results.json here.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

import attnbench
from attnbench.diffusion.box_muller import ANGLE, RADIUS, BoxMullerNoise
from attnbench.diffusion.ddpm import Denoiser, GaussianDiffusion, space_timesteps
from attnbench.diffusion.noise import KeyedNoise, Noise, stream_key
from attnbench.diffusion.philox import PhiloxStream
from attnbench.diffusion.samplers import ddpm_steps
from attnbench.results import environment

HERE = Path(__file__).parent
CPU = torch.device("cpu")
LATENTS = [(4, 32, 32), (3, 32, 32), (1, 8, 8)]
BATCH = 100  # `sample.batch_size` by default
STEPS = 25
KINDS = ("ziggurat", "box-muller")
PAIRS = 2**15  # at once, as box_muller has it
MODELS = [("dit-s", 256, (4, 32, 32), 8, 4), ("tiny-dit", 8, (1, 8, 8), BATCH, 10)]
"""Recipe, resolution, input, images of a batch, steps."""


def in_turns(
    works: dict[str, Callable[[], object]], rounds: int, least_s: float = 0.02
) -> dict[str, list[float]]:
    """Return CPU seconds of one call of each, round by round; a sample lasts at least `least_s`."""
    repeats = {}
    for name, work in works.items():
        work()  # imports, caches, compilation
        started = time.process_time()
        work()
        repeats[name] = max(1, math.ceil(least_s / max(time.process_time() - started, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                work()
            taken[name].append((time.process_time() - started) / repeats[name])
    return taken


def noise_of(kind: str, shape: tuple[int, ...], batch: int, steps: int = 1) -> Noise:
    """Return the noise of the first samples of seed 0."""
    if kind == "ziggurat":
        return KeyedNoise(seed=0, indices=range(batch), shape=shape, device=CPU)
    return BoxMullerNoise(seed=0, indices=range(batch), shape=shape, device=CPU, num_steps=steps)


def draw_steps(kind: str, shape: tuple[int, ...]) -> None:
    """Draw the noise of a batch's steps as a sampler does: a new object, one step after the other."""
    noise = noise_of(kind, shape, BATCH, STEPS)
    for step in range(STEPS):
        noise.at(step)


def repeat(work: Callable[[], object]) -> None:
    """Do something as many times as there are steps; nothing is kept."""
    for _ in range(STEPS):
        work()


def fused(counters: torch.Tensor) -> torch.Tensor:
    """Return four normals for each counter, fp32 [4, n]: Philox4x32-10, whose words fit int64 as they are."""
    words, key = [counters, *[torch.zeros_like(counters)] * 3], [1, 2]
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        low, high = 0xFFFFFFFF, [(second >> 32), (first >> 32)]
        mixed = [(high[0] & low) ^ words[1] ^ key[0], (high[1] & low) ^ words[3] ^ key[1]]
        words = [mixed[0], second & low, mixed[1], first & low]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    normals = []
    for half, turn in (words[:2], words[2:]):
        radius = torch.sqrt(-2 * torch.log((half.float() + 0.5) * 2.0**-32))
        angle = turn.float() * (math.pi * 2.0**-31)
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(normals)


def rates(rounds: int) -> list[dict[str, object]]:
    """Return nanoseconds a number of each latent, by each kind of noise, and ratios round by round."""
    return [row for shape in LATENTS for row in _rates(shape, rounds)]


def _rates(shape: tuple[int, ...], rounds: int) -> Iterator[dict[str, object]]:
    count = BATCH * math.prod(shape)
    empty = torch.empty(count)
    works: dict[str, Callable[[], object]] = {kind: partial(draw_steps, kind, shape) for kind in KINDS}
    works["torch.randn"] = partial(repeat, empty.normal_)
    if shutil.which("g++"):
        compiled, counters = torch.compile(fused, dynamic=False), torch.arange(count // 4)
        works["fused"] = partial(repeat, partial(compiled, counters))
    taken = in_turns(works, rounds)
    for name, seconds in taken.items():
        ratios = [old / new for old, new in zip(taken["ziggurat"], seconds, strict=True)]
        yield {
            "latent": "x".join(map(str, shape)),
            "noise": name,
            "ns_per_number": statistics.median(seconds) / (count * STEPS) * 1e9,
            "times_faster": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
        }


def by_operations(counters: np.ndarray) -> list[np.ndarray]:
    """Return the four words of each counter, 32 bits in uint64 [n] each, by Philox4x32-10."""
    words, key, low = [counters, *[np.zeros_like(counters)] * 3], [1, 2], 0xFFFFFFFF
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        mixed = [(second >> 32) ^ words[1], (first >> 32) ^ words[3]]
        for word, part in zip(mixed, key, strict=True):
            np.bitwise_xor(word, np.uint64(part), out=word)
        words = [
            mixed[0],
            np.bitwise_and(second, low, out=second),
            mixed[1],
            np.bitwise_and(first, low, out=first),
        ]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return words


def parts(rounds: int) -> list[dict[str, object]]:
    """Return nanoseconds a number of what makes it, before and now, on arrays of the size that is used."""
    stream = PhiloxStream(stream_key(0, "sample"))
    blocks = PAIRS // 8
    words = stream.words((1, 0, RADIUS, 256), blocks)
    radius, angle = words.view(np.uint32), words.view(np.int32)
    uniform = ((radius.astype(np.float32) + 0.5) * 2.0**-32).astype(np.float32)
    turned, spare = (angle * np.float32(math.pi * 2.0**-31)).astype(np.float32), np.empty(PAIRS, np.float32)
    ziggurat, drawn = np.random.Generator(np.random.Philox(0)), np.empty(2 * PAIRS, np.float32)
    counters = np.arange(PAIRS // 2, dtype=np.uint64)
    works: dict[str, Callable[[], object]] = {
        "before: NumPy's ziggurat": lambda: ziggurat.standard_normal(dtype=np.float32, out=drawn),
        "not used: words of Philox4x32-10 by operations of NumPy": partial(by_operations, counters),
        "words of Philox4x64-10": lambda: [stream.words((1, 0, use, 256), blocks) for use in (RADIUS, ANGLE)],
        "integers to fp32": lambda: (radius.astype(np.float32), angle.astype(np.float32)),
        "logarithm": lambda: np.log(uniform, out=spare),
        "square root": lambda: np.sqrt(uniform, out=spare),
        "cosine and sine": lambda: (np.cos(turned, out=spare), np.sin(turned, out=spare)),
        "six additions and products": lambda: [np.multiply(turned, uniform, out=spare) for _ in range(6)],
    }
    found = [
        {"operation": name, "ns_per_number": statistics.median(seconds) / (2 * PAIRS) * 1e9}
        for name, seconds in in_turns(works, rounds).items()
    ]
    alone: dict[str, Callable[[], object]] = {
        "": partial(noise_of("ziggurat", (1,), BATCH).at, 1)
    }  # next to nothing but what each sample costs
    of_a_sample = statistics.median(in_turns(alone, rounds)[""]) / BATCH * 1e9
    return [
        found[0],
        {"operation": "before: each sample beside it (ns a sample)", "ns_per_number": of_a_sample},
        *found[1:],
    ]


def shares(rounds: int) -> Iterator[dict[str, object]]:
    """Yield which share of the CPU time of ancestral sampling without guidance the noise is."""
    for recipe, resolution, shape, batch, steps in MODELS:
        model = attnbench.build_model(recipe, resolution=resolution, num_classes=10).eval()
        labels = torch.arange(batch) % 10
        learned = model(torch.zeros(1, *shape), torch.zeros(1), labels[:1]).shape[1] == 2 * shape[0]
        process = GaussianDiffusion(learned_variance=learned, timesteps=space_timesteps(steps))
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind, values in found.items():
                noise = Timed(noise_of(kind, shape, batch, steps))
                seconds = sample(partial(model, y=labels), process, noise)
                values.append(noise.spent / seconds)
        for kind, values in found.items():
            yield {"model": recipe, "batch": batch, "noise": kind, "percent": 100 * statistics.median(values)}


class Timed:
    """Noise, and the CPU seconds that went into it."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.spent = noise, 0.0

    def at(self, step: int) -> torch.Tensor:
        """Return the noise of a step."""
        started = time.process_time()
        drawn = self.noise.at(step)
        self.spent += time.process_time() - started
        return drawn


@torch.inference_mode()
def sample(denoiser: Denoiser, process: GaussianDiffusion, noise: Noise) -> float:
    """Sample a batch and return the CPU seconds it took."""
    started = time.process_time()
    for _ in ddpm_steps(denoiser, process, noise.at(0), lambda index: noise.at(index + 1), clip=False):
        pass
    return time.process_time() - started


def show(rows: list[dict[str, object]]) -> None:
    """Print rows as a Markdown table."""
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(_cell(value) for value in row.values())} |")
    print()


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(f"{one:.2f}" for one in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)


def main() -> None:
    """Measure everything, write it, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    tables = {
        "rates": rates(rounds),
        "parts": parts(rounds),
        "shares": list(shares(max(3, rounds // 5))),
    }
    record = {"environment": environment("cpu").model_dump(mode="json"), **tables}
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, rows in tables.items():
        print(f"{name}\n")
        show(rows)


if __name__ == "__main__":
    main()
