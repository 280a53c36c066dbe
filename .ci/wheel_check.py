"""Build the wheel, install it and the tutorial plugin into a clean environment, and use both there.

Everything runs from an empty folder, so that nothing of the source tree can be imported by accident.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = """\
name: tiny
question: Does the installed wheel run a suite, a stranger's plugin included?
model: {recipe: tiny-dit, depth: 1, dim: 32, num_heads: 2, learned_variance: false}
data: digits
train: {objective: flow, steps: 20, batch_size: 16, lr: 1e-3, ema_decay: 0.9}
sample: {sampler: euler, num_steps: 3, per_class: 6}
evaluate: {extractor: digits-cnn, kd_subset_size: 50, kd_subsets: 5}
profile: {rounds: 2}
matrix:
  model.attention: [softmax, hello]
"""


def call(*words: object, cwd: Path, env: dict[str, str]) -> str:
    """Run a command, show it, and return what it printed; a failure ends the check."""
    line = " ".join(str(word) for word in words)
    print(f"$ {line}", flush=True)
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"wheel check failed: exit code {done.returncode} from: {line}")
    return done.stdout


def expect(text: str, *words: str) -> None:
    """End the check when a word is missing from an output."""
    for word in words:
        if word not in text:
            sys.exit(f"wheel check failed: {word!r} not in the output above")


def main() -> None:
    """Build, install, list, run."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        call(sys.executable, "-m", "build", "--wheel", "--outdir", place / "dist", ROOT, cwd=place, env=env)
        (wheel,) = (place / "dist").glob("*.whl")
        venv.create(place / "clean", with_pip=True)
        python = place / "clean" / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
        call(*pip, "torch", cwd=place, env=env)
        call(*pip, wheel, cwd=place, env=env)
        call(*pip, ROOT / "plugins" / "attnbench-hello", cwd=place, env=env)
        tool = place / "clean" / "bin" / "attnbench"
        expect(call(tool, "--help", cwd=place, env=env), "run", "profile")
        expect(call(tool, "list", "backends", cwd=place, env=env), "softmax", "dydila", "hello")
        expect(call(tool, "list", "suites", cwd=place, env=env), "quick", "photos", "subin_256")
        (place / "tiny.yaml").write_text(TINY)
        expect(
            call(tool, "run", "tiny.yaml", "--quiet", cwd=place, env=env), "softmax", "hello", "report.html"
        )
        report = (place / "runs" / "tiny" / "report.html").read_text()
        expect(report, "<table", "data:image/png;base64")
    print("wheel check: passed")


if __name__ == "__main__":
    main()
