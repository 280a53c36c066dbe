"""A suite of two cases that takes seconds, under any name."""

from __future__ import annotations

from pathlib import Path

from attnbench.suite.loading import Suite, load_suite

TINY = """\
name: tiny
question: Does the road hold?
model: {recipe: tiny-dit, depth: 1, dim: 32, num_heads: 2}
data: digits
train: {objective: flow, steps: 8, batch_size: 8, lr: 1e-3, ema_decay: 0.5, log_every: 2}
sample: {sampler: euler, num_steps: 2, per_class: 4}
evaluate: {extractor: digits-cnn, kd_subset_size: 20, kd_subsets: 4}
profile: {measure: [macs, params]}
matrix:
  model.attention: [softmax, linear]
"""


def tiny_suite(folder: Path, name: str, *overrides: str) -> Suite:
    """Write the suite with another name (and so another run folder) and load it."""
    path = folder / f"{name}.yaml"
    path.write_text(TINY.replace("name: tiny", f"name: {name}"))
    return load_suite(path, list(overrides))
