"""One training, in the order of a step.

`batches` (what a step sees), `loss`, `trainer` (the step itself), `ema`, `log`, `bookkeeping`, `checkpoint`.
What several processes need: `global_batch_norm`, `over_processes`, `sharding`.
"""
