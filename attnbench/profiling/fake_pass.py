"""Running a pass on fake tensors: sizes and lifetimes are real, numbers and memory are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
KNOWN_VALUES = 65_536  # elements of a tensor, at most, whose numbers are computed
_UNDETERMINED = ("aten::empty", "aten::new_empty")


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Let every tensor made inside be fake: on the CPU by name, with no numbers and no memory."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_WithoutNumbers())
        yield


def materialise(module: nn.Module) -> None:
    """Give a module built on the meta device tensors on the CPU: fake ones inside `fake_tensors`."""
    made: dict[int, torch.Tensor] = {}  # weights that two layers share stay shared

    def made_from(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = made_from(tensor)  # type: ignore[assignment]


class _WithoutNumbers(TorchDispatchMode):
    """What fake tensors need help with: numbers that the code's own constants determine, and kernels.

    A schedule's few times decide which way a pass goes (mediators by timestep, a sampler's steps). Small
    tensors that depend on nothing but constants are therefore computed beside the fake ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: Any = WeakTensorKeyDictionary()  # of a fake tensor: a real one

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0] in self._values:
            with _disable_current_modes():
                return self._values[args[0]].item()
        if func is aten._grouped_mm.default:
            return _grouped_mm(*args, **kwargs)
        if func is aten.tensor_split.tensor_indices_or_sections:
            # where groups end is unknown; that they fill the tensor is not
            return args[0].tensor_split(args[1].numel() + 1, *args[2:], **kwargs)
        output = func(*args, **kwargs)
        self._compute_beside(func, args, kwargs, output)
        return output

    def _compute_beside(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        known = all(x in self._values or not isinstance(x, FakeTensor) for x in inputs)
        small = all(x.numel() <= KNOWN_VALUES for x in (*inputs, *made))
        random = torch.Tag.nondeterministic_seeded in func.tags
        if not (known and small and made) or func.name().startswith(_UNDETERMINED) or random:
            if func._schema.is_mutable:
                self._forget(inputs)
            return
        with _disable_current_modes():
            values = func(*tree_map_only(torch.Tensor, self._value_of, args), **self._real(kwargs))
        for fake, value in zip(made, tree_leaves(values), strict=True):
            self._values[fake] = value

    def _real(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return tree_map_only(torch.Tensor, self._value_of, dict(kwargs))

    def _value_of(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._values[tensor] if isinstance(tensor, FakeTensor) else tensor

    def _forget(self, written: list[torch.Tensor]) -> None:
        """Drop the numbers of tensors that something unknown was written to, and of their views."""
        spoilt = {self._values[x].untyped_storage().data_ptr() for x in written if x in self._values}
        for fake, value in list(self._values.items()) if spoilt else ():
            if value.untyped_storage().data_ptr() in spoilt:
                del self._values[fake]


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Make the output of grouped_mm: torch's own fake kernel (2.13) takes bf16 alone."""
    dtype = out_dtype or a.dtype
    if a.ndim == b.ndim:  # one matrix of each per group, or a sum over each group's part of K
        groups = a.shape[0] if offs is None else offs.shape[0]
        return a.new_empty(groups, a.shape[-2], b.shape[-1], dtype=dtype)
    return a.new_empty(a.shape[-2], b.shape[-1], dtype=dtype)
