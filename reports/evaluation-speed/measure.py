"""What an evaluation costs beside its network: reading images and distances, against another build.

    python reports/evaluation-speed/measure.py --before CHECKOUT [--rounds 3] [--images 600] [--features 5000]

Reading: crops of scikit-image's photographs, 256 px, as PNG files, JPEG files, a stored and a compressed npz,
from opening the set to features of a network that costs nothing, on one core and on two; clean-fid's resize
to 299 px by itself. Distances: `--features` x 2,048 float32 numbers, one thread. Every round is a process of
each build in turn, with a cache of its own; times are CPU times of the process, which hold on a shared
machine, and those of two cores are by the clock as well. What both builds computed is compared.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ("coffee", "cat", "rocket", "astronaut", "immunohistochemistry")
SETS = {
    "PNG files": "png",
    "JPEG files": "jpeg",
    "npz, stored": "stored.npz",
    "npz, compressed": "compressed.npz",
}
SIDE, WIDTH, RANK, CLASSES = 256, 2048, 256, 5
Found = dict[str, Any]


def write_sets(folder: Path, count: int) -> None:
    """Write the same crops in every format."""
    import numpy as np
    from PIL import Image
    from skimage import data

    generator, crops = np.random.default_rng(0), []
    photographs = [getattr(data, name)() for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (int(generator.integers(0, size - SIDE + 1)) for size in photograph.shape[:2])
        crops.append(photograph[top : top + SIDE, left : left + SIDE])
    for name, ending, options in (("png", "png", {}), ("jpeg", "jpg", {"quality": 95})):
        (folder / name).mkdir()
        for number, crop in enumerate(crops):
            Image.fromarray(crop).save(folder / name / f"{number:05d}.{ending}", **options)
    np.savez(folder / "stored.npz", arr_0=np.stack(crops))
    np.savez_compressed(folder / "compressed.npz", arr_0=np.stack(crops))


@contextmanager
def timed(found: Found, images: int) -> Iterator[None]:
    """Note milliseconds an image, and how far the process grew beyond what it had (Linux)."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    cpu, clock = time.process_time(), time.perf_counter()
    yield
    found["cpu_ms"] = (time.process_time() - cpu) / images * 1e3
    found["clock_ms"] = (time.perf_counter() - clock) / images * 1e3
    found["grew_mib"] = _memory("VmHWM") - before


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def read(folder: Path) -> dict[str, Found]:
    """Read every set with this process's build, and decode files without it."""
    import numpy as np
    import PIL.Image
    import torch

    from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
    from attnbench.evaluation.features import FeatureCache
    from attnbench.evaluation.images import open_images
    from attnbench.metrics.clean_resize import clean_resize
    from attnbench.plugins import Provided

    def network(images: torch.Tensor) -> Features:
        return Features(pooled=images[:, 0, 0].float())

    record = FeatureExtractor(
        name="none", suffix="none", summary="", source="", load=lambda inputs: network,
        identity=lambda inputs: "",
    )  # fmt: skip
    code = {"code": ""} if "code" in inspect.signature(Provided).parameters else {}
    provided = Provided(record=record, plugin="", origin="", **code)
    results: dict[str, Found] = {}
    for name, path in SETS.items():
        with tempfile.TemporaryDirectory() as cache:
            inputs = ExtractorInputs(device=torch.device("cpu"), seed=0, cache_dir=Path(cache))
            extractor = FeatureCache(folder=Path(cache), extractor=provided, inputs=inputs)
            found = results.setdefault(name, {})
            count = len(open_images(folder / path, allow_jpeg=True))
            with timed(found, count):
                features = extractor.features(open_images(folder / path, allow_jpeg=True))
        found["sha256"] = _sha256(features.pooled, features.digests)
    for name in ("PNG files", "JPEG files"):
        files = sorted((folder / SETS[name]).iterdir())
        contents = [file.read_bytes() for file in files]
        found = results.setdefault(f"pillow's decoder, {name}", {})
        with timed(found, len(files)):
            for content in contents:
                np.asarray(PIL.Image.open(io.BytesIO(content)))
        found["sha256"] = ""
    images = open_images(folder / "stored.npz").shards[0].load()[:64]
    found = results.setdefault("resize of protocol clean", {})
    with timed(found, len(images)):
        resized = clean_resize(images, 299)
    found["sha256"] = _sha256(resized)
    return results


def _sha256(*tensors: Any) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def features(count: int, seed: int) -> Any:
    """Return float32 [count, 2048], not negative and correlated, as a network's pooled features are."""
    import torch

    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + seed)
    mixing = torch.arange(1, RANK + 1)[:, None] ** -0.7 * torch.randn(RANK, WIDTH, generator=shared)
    offset = 0.3 * torch.randn(WIDTH, generator=shared) + 0.02 * seed
    latent = torch.randn(count, RANK, generator=own)
    noise = torch.randn(count, WIDTH, generator=own)
    return (latent @ mixing + offset).add_(noise, alpha=0.3).relu_()


def distances(count: int) -> dict[str, Found]:
    """Compute every distance with this process's build."""
    import torch

    from attnbench.evaluation.by_class import by_class
    from attnbench.evaluation.memorisation import memorisation
    from attnbench.evaluation.nearest import nearest
    from attnbench.metrics.pairwise import pairwise

    x, y = features(count, 0), features(count, 1)
    labels = torch.arange(count) % CLASSES
    size = min(1000, count)
    results: dict[str, Found] = {}

    def task(name: str, function: Callable[[], Any]) -> Any:
        began = time.process_time()
        value = function()
        results[name] = {"cpu_s": time.process_time() - began}
        return value

    def pairs(run: Callable[..., Any]) -> Any:
        found = run(x, y, neighbours=3, subsets=100, subset_size=size)
        found.kernel_influence  # noqa: B018 - it is part of the work
        return found

    def numbers(found: Any) -> list[float]:
        inside = (found.sample_inside, found.reference_inside)
        return [*found.kernel_values, *(float(each.double().mean()) for each in inside)]

    rows = x[:1024].double()
    task("product", lambda: [rows @ rows.T for _ in range(5)])
    results["product"]["gflops"] = 5 * 2 * 1024**2 * WIDTH / results["product"]["cpu_s"] / 1e9
    found = task("kernel distance, precision, recall", lambda: pairs(pairwise))
    results["kernel distance, precision, recall"]["values"] = numbers(found)
    if hasattr(type(found), "recall_error"):  # asked of `found` it would be computed
        task("interval of recall", lambda: found.recall_error)
    again = "the same, another set of samples"
    try:
        from attnbench.evaluation.pair_memory import PairMemory
    except ImportError:
        results[again] = results["kernel distance, precision, recall"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            memory = PairMemory(folder=Path(folder))
            pairs(memory.pairwise)
            task(again, lambda: pairs(memory.pairwise))

    def closeness() -> Any:
        near = nearest(y, x, 5)
        known = {"found": near} if "found" in inspect.signature(memorisation).parameters else {}
        return near, memorisation(y, x, **known)

    near, memory_found = task("nearest 5 and memorisation", closeness)
    usual = [c.threshold for c in memory_found.closeness]
    results["nearest 5 and memorisation"]["values"] = [_sha256(*near), *usual]
    names = [str(number) for number in range(CLASSES)]
    classes = task(f"{CLASSES} classes", lambda: by_class(x, labels, y, labels, names))
    results[f"{CLASSES} classes"]["values"] = [
        value
        for each in classes
        for value in (each.scores.kernel_distance, each.scores.precision, each.scores.recall)
    ]
    return results


def child(checkout: Path, *words: str, cores: int) -> dict[str, Found]:
    """Run one part in a process of its own with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(cores)}
    command = [sys.executable, __file__, "--child", *words, "--cores", str(cores)]
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def medians(rounds: list[dict[str, Found]]) -> dict[str, Found]:
    """Return the median of every number over rounds; what is no number is the first round's."""
    merged: dict[str, Found] = {}
    for task, found in rounds[0].items():
        merged[task] = {
            key: statistics.median(each[task][key] for each in rounds) if isinstance(value, float) else value
            for key, value in found.items()
        }
    return merged


def in_turn(before: Path, rounds: int, *words: str, cores: int) -> dict[str, dict[str, Found]]:
    """Return the medians of both builds, and of their ratios round by round."""
    taken: dict[str, list[dict[str, Found]]] = {"before": [], "now": []}
    for _ in range(rounds):
        for name, checkout in (("before", before), ("now", ROOT)):
            taken[name].append(child(checkout, *words, cores=cores))
    found = {name: medians(each) for name, each in taken.items()}
    for task, now in found["now"].items():
        for key in ("cpu_ms", "clock_ms", "cpu_s"):
            if key in now and task in found["before"]:
                pairs = zip(taken["before"], taken["now"], strict=True)
                ratios = [new[task][key] / old[task][key] for old, new in pairs]
                now[f"{key}_ratio"] = statistics.median(ratios)
    return found


def difference(before: Found, now: Found) -> str:
    """Say how far apart what both builds computed is."""
    if "sha256" in now:
        return "same bits" if now["sha256"] == before["sha256"] else "OTHER BITS"
    if "values" not in now:
        return ""
    if now["values"] == before["values"]:
        return "same bits"
    pairs = list(zip(before["values"], now["values"], strict=True))
    if any(isinstance(new, str) and new != old for old, new in pairs):
        return "OTHER BITS"
    largest = max(abs(new - old) / max(abs(old), 1e-12) for old, new in pairs if not isinstance(new, str))
    return f"relative difference {largest:.0e}"


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{results['images']} images of {SIDE} px: ms an image before, now, ratio; growth in MiB")
    for cores in ("1", "2"):
        if cores not in results["reading"]:
            continue
        before, now = results["reading"][cores]["before"], results["reading"][cores]["now"]
        for name, new in now.items():
            old = before[name]
            line = f"cores: {cores} {name:<28} CPU {old['cpu_ms']:.2f} {new['cpu_ms']:.2f}"
            line += f" {new['cpu_ms_ratio']:.2f}  clock {old['clock_ms']:.2f} {new['clock_ms']:.2f}"
            line += f" {new['clock_ms_ratio']:.2f}  grew {old['grew_mib']:.0f} {new['grew_mib']:.0f}"
            print(f"{line}  {difference(old, new)}")
    count = results["features"]
    print(f"{count:,} x {count:,} features of {WIDTH:,}: s of CPU before, now, times as fast")
    before, now = results["distances"]["before"], results["distances"]["now"]
    for name, new in now.items():
        if name not in before:
            print(f"{name:<36} {new['cpu_s']:.2f} (not in the build before)")
            continue
        speed = 1 / new["cpu_s_ratio"]
        line = f"{name:<36} {before[name]['cpu_s']:.2f} {new['cpu_s']:.2f} {speed:.2f}"
        print(f"{line}  {difference(before[name], new)}")
    products = 2 * WIDTH * 2 * count**2 / now["product"]["gflops"] / 1e9
    share = products / now["kernel distance, precision, recall"]["cpu_s"]
    print(
        f"the float64 products of one pass take {products:.2f} s at {now['product']['gflops']:.0f} GFLOP/s: "
        f"{share:.0%} of kernel distance, precision, recall"
    )


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout, run in turns with this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--features", type=int, default=5000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        import torch

        torch.set_num_threads(arguments.cores)
        part, of = arguments.child
        print(json.dumps(read(Path(of)) if part == "read" else distances(int(of))))
        return
    if arguments.before is None:
        parser.error("give --before CHECKOUT, a git worktree of d7fcb6e")
    before, rounds = arguments.before.resolve(), arguments.rounds
    results: dict[str, Any] = {"images": arguments.images, "features": arguments.features, "reading": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_sets(Path(folder), arguments.images)
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            results["reading"][str(cores)] = in_turn(before, rounds, "read", folder, cores=cores)
    results["distances"] = in_turn(before, min(2, rounds), "distances", str(arguments.features), cores=1)
    from attnbench.results import environment

    results["environment"] = environment().model_dump(mode="json")
    Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
