"""One training, in the order of a step.

`batches` (what a step sees), `loss`, `trainer` (the step itself, and the loop around it), `ema`, `journal`
(what is noted of a step: `log`, `loss_curve`), `checkpoint`. Before the first step: `initial_weights`,
`block_origins` and `growth`; beside
the steps: `held_out_loss`, and `nonfinite` where one goes wrong. What several processes need:
`global_batch_norm`, `over_processes`, `sharding`.
"""
