#!/usr/bin/env bash
# torch 2.13.0: under torch.inference_mode, autocast casts a weight anew each time it is used.
#
# Expected: inference_mode does what no_grad does and less, so that it is never slower; autocast casts a float32 weight
#   to bfloat16 once and keeps the copy until its context ends (cache_enabled=True is the default).
# What happens: it keeps copies of leaves that require a gradient only, and the copy made in inference mode is none
#   that it keeps: a layer called ten times in one autocast context casts its weight and bias once under no_grad (12
#   casts with the ten inputs) and ten times under inference_mode (30). No warning; the numbers are the same.
# Who is hurt: whoever samples in bfloat16 with one autocast context around the whole loop: a linear layer of width 1024
#   on four rows takes nearly twice as long on two CPU cores. attnbench opens autocast once a pass, where each weight is
#   used once, so that its times hold the cast either way (DESIGN 37: a pass in bf16 casts the weights it uses).
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat > "$place/check.py" <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile

CALLS = 10
layer, inputs = torch.nn.Linear(64, 64), torch.randn(4, 64)


def casts(mode):
    with profile(activities=[ProfilerActivity.CPU]) as seen, mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(CALLS):
            output = layer(inputs)
    return output.clone(), {event.key: event.count for event in seen.key_averages()}["aten::_to_copy"]


kept, with_no_grad = casts(torch.no_grad)
again, with_inference_mode = casts(torch.inference_mode)
print(f"torch {torch.__version__}: {with_no_grad} casts under no_grad, {with_inference_mode} under inference_mode")
assert torch.equal(kept, again)
assert with_no_grad == CALLS + 2, "no_grad no longer keeps the casts of weight and bias"
assert with_inference_mode == 3 * CALLS, "inference_mode keeps the casts of weights now"
PY
"$place/venv/bin/python" "$place/check.py" 2>/dev/null
echo "finding holds"
