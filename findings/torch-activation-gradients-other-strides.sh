#!/usr/bin/env bash
# torch 2.13.0: the gradients of softplus, elu and hardswish have other strides than torch's own tracing says.
#
# Expected: what fake tensors say of an operator (shape, type, strides) is what the operator returns: torch.compile,
#   torch.export and every tool that plans by them rest on it.
# What happens: where the incoming gradient is permuted, softplus_backward, elu_backward, hardswish_backward and
#   logit_backward follow its strides, while their fake forms promise a contiguous result. Eager autograd and inductor,
#   which decomposes them, do not mind. A graph that runs the operators as they were traced (backend="aot_eager") takes
#   the promise for true, keeps a view behind it, and ends in "view size is not compatible with input tensor's size and
#   stride". gelu, silu, sigmoid and leaky_relu keep their word.
# Who is hurt: layers that take softplus of steps or decays (Mamba, delta nets), wherever a backend does not decompose
#   it; a message that names neither the activation nor the line. attnbench writes softplus as logaddexp(x, 0).
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat > "$place/check.py" <<'PY'
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

ATEN = torch.ops.aten
GRADIENTS = {
    "softplus": (ATEN.softplus_backward, (1, 20)),
    "elu": (None, ()),
    "hardswish": (ATEN.hardswish_backward, ()),
    "gelu": (ATEN.gelu_backward, ()),
}


def strides(name, gradient, x):
    operator, more = GRADIENTS[name]
    if name == "elu":
        return ATEN.elu_backward(gradient, 1.0, 1.0, 1.0, False, x).stride()
    return operator(gradient, x, *more).stride()


def compiled(activation, backend):
    """A view before the activation, a permutation behind it: the gradient arrives permuted."""
    torch._dynamo.reset()
    weights = torch.arange(24.0).reshape(3, 2, 4)

    def loss(v):
        return (activation(v.view(2, 3, 4)).permute(1, 0, 2) * weights).sum()

    v = torch.linspace(-2, 2, 24).reshape(6, 4).requires_grad_()
    try:
        torch.compile(loss, backend=backend)(v).backward()
    except RuntimeError as error:
        return "view size is not compatible" in str(error)
    return False


for name in GRADIENTS:
    gradient, x = torch.randn(3, 2, 4).transpose(0, 1), torch.randn(2, 3, 4)
    real = strides(name, gradient, x)
    with FakeTensorMode() as mode:
        fake = strides(name, mode.from_tensor(gradient), mode.from_tensor(x))
    raises = compiled(getattr(functional, name), "aot_eager")
    print(f"torch {torch.__version__}: {name}: strides {real}, traced {fake}, aot_eager raises: {raises}")
    assert not compiled(getattr(functional, name), "eager")
    assert (real != fake) == raises == (name != "gelu"), f"{name} has changed"
PY
"$place/venv/bin/python" "$place/check.py" 2>/dev/null
echo "finding holds"
