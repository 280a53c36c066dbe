"""What a training takes beside its steps: batches of cached latents, checkpoints and log, start after a kill.

    python reports/training-overhead/measure.py [--parts loader saving resume] [--rounds 3]

Makes a small real training set (photographs of scikit-image and scikit-learn, `attnbench data prepare`,
latents by a random autoencoder) in a temporary folder and runs each part in a process of its own, with the
memory settings that `attnbench run` gives its cases. Under 6 minutes on 2 idle cores; 6 GiB of disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from inputs import make_inputs

from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED

PARTS = ("loader", "saving", "resume")


def load() -> str:
    """Return the machine's load: what else ran meanwhile."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-in", type=Path, help="parent of the temporary folder (its disk is measured)")
    args = parser.parse_args()
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it recommends a package that nothing here needs
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{os.cpu_count()} cores, {platform.machine()}, {versions}")
    print(f"load at the start: {load()}", flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.keep_in) as name:
        make_inputs(Path(name))
        for part in args.parts:
            script = Path(__file__).with_name(f"{part}.py")
            words = [sys.executable, str(script), name, "--rounds", str(args.rounds)]
            subprocess.run(words, check=True, env={**KEEP_MEMORY_MAPPED, **os.environ})
            passed = time.perf_counter() - started
            print(f"  load after it: {load()}; {passed:.0f} s since the start", flush=True)


if __name__ == "__main__":
    main()
