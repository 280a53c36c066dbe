#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy writes other numbers than it was given for an array that is not C-contiguous.
#
# Expected: save_file({"a": a.T}) and load_file give a.T back, or an error is raised, as safetensors.torch raises one
#   ("You are trying to save a non contiguous tensor").
# What happens: no error; the file has the shape of a.T and the bytes of a in the order in which they lie in memory,
#   so that every number stands at another place. A strided view, a[::2], even comes out with numbers that are not
#   in it. The file is valid, of the right size, and loads everywhere.
# Who is hurt: whoever makes a weights file from TensorFlow's or JAX's arrays, whose kernels are transposed for torch:
#   the network runs and its features are noise. attnbench writes with safetensors.torch alone, and compares weights
#   files with their SHA-256 where one is published; METRICS.md ("Networks and protocols") warns of the rest.
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$place/check.py" <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file

folder = sys.argv[1]
a = np.arange(6, dtype=np.float32).reshape(2, 3)

save_file({"a": np.ascontiguousarray(a.T)}, f"{folder}/copied.safetensors")
assert np.array_equal(load_file(f"{folder}/copied.safetensors")["a"], a.T)

save_file({"a": a.T}, f"{folder}/transposed.safetensors")  # raises nothing
written = load_file(f"{folder}/transposed.safetensors")["a"]
print(f"safetensors {safetensors.__version__}: given {a.T.tolist()}, written {written.tolist()}")
assert written.shape == a.T.shape
assert not np.array_equal(written, a.T), "safetensors.numpy no longer writes a transposed array as another"
assert np.array_equal(written, a.reshape(3, 2)), "it writes something else now"

strided = np.arange(12, dtype=np.float32)[::2]
written = load(save({"a": strided}))["a"]
print(f"given {strided.tolist()}, written {written.tolist()}")
assert not np.array_equal(written, strided), "safetensors.numpy no longer writes a strided array as another"
PY
"$place/venv/bin/python" "$place/check.py" "$place"
echo "finding holds"
