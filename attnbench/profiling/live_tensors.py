"""How many bytes of tensors are alive at once: what a pass needs, whoever allocates it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnbench.errors import UnsupportedError
from attnbench.profiling.kernel_memory import Machine, hidden_bytes

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_BUILT_IN = ("aten", "prims", "prim", "profiler")


class LiveTensors(TorchDispatchMode):
    """Follow every storage from the operation that makes it to the moment nothing refers to it any more.

    Works on real tensors and on fake ones, which have sizes and lifetimes and no memory. `live` and `peak`
    are bytes of storages made while the mode was on, each rounded up as the allocator of `machine` does.
    What a kernel takes for itself while it runs is in no tensor: `kernel_memory` knows it by formula.
    An operation of somebody's own (torch.library.custom_op) is followed into its Python body.
    Raises UnsupportedError naming an operation that has no such body, since what it takes is unknown.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def start_anew(self) -> None:
        """Let the peak fall to what is alive now."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with (
                self
            ):  # what it consists of makes tensors, too; not func.decompose(), which has rewrites in Python
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        if func.namespace not in _BUILT_IN:
            body = _python_body(func)
            with self:
                return body(*args, **kwargs)
        output = func(*args, **kwargs)
        given = _storages((args, kwargs))
        there = {id(storage) for storage in given}
        for storage in _storages(output):
            if id(storage) not in there:  # else a view, or what it wrote to; it may be older than this mode
                self._follow(storage)
        hidden = hidden_bytes(func, args, output, self.machine)
        self.peak = max(self.peak, self.live + hidden)
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._storages:
            return
        size = self.machine.allocated(storage.nbytes())

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _is_composite(func: Any) -> bool:
    return func.namespace != "prim" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), _COMPOSITE.name
    )


def _python_body(func: Any) -> Callable[..., Any]:
    name = f"{func.namespace}::{func._opname}"
    definition = torch._library.custom_ops.OPDEFS.get(name)
    if definition is None:
        raise UnsupportedError(
            f"the memory that {name} takes while it runs is unknown: it is no operation of torch's and has "
            "no Python body (torch.library.custom_op) to follow; measure the peak instead (--measure memory; "
            "in a suite: profile.measure)"
        )
    body: Callable[..., Any] = definition._init_fn
    return body
