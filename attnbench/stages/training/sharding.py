"""Weights in shards over processes (FSDP2): a model is cut, and what is kept of it is put together again.

Every tensor is cut along its first dimension, in as many pieces as there are processes. What works on
weights elsewhere (averages, optimizer, checkpoints) goes through `own_part`, `whole` and `cut_like`, which
do nothing to a tensor that is not cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import nn

from attnbench.errors import UnsupportedError

if TYPE_CHECKING:
    # both import a compiler, which takes half as long as torch itself: only who shards waits for them
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard_model(model: nn.Module, device: torch.device, processes: int) -> None:
    """Cut a model's weights, those of the first process, in place, block by block; call it in every process.

    A process holds the whole of a block only while it computes it. Gradients come out as means over all
    processes, in shards; that of a parameter which a step does not use is zero, not None: `UsedParameters`
    tells which. Raises UnsupportedError for parameters without a dimension to cut, and before torch 2.13.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UnsupportedError(
            f"train.sharding: fsdp2 needs torch 2.13 or newer, this is {torch.__version__}: before, a "
            "parameter that one process uses and another does not would hang them; use train.sharding: none"
        )
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise UnsupportedError(
            "train.sharding: fsdp2 cuts parameters along their first dimension, but "
            f"{', '.join(scalars)} has none; give it the shape [1] in its module, or use train.sharding: none"
        )
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*cast("nn.ModuleList", model.blocks), model):
        sharded = cast("FSDPModule", fully_shard(part, mesh=mesh, reshard_after_forward=True))
        # routers may leave a parameter without a gradient in one process and not in another
        sharded.set_reduce_scatter_unused_params(True)


class UsedParameters:
    """Which parameters of a sharded model have got a gradient in this process since they were last asked for.

    In one process, and under DDP, a parameter that no micro-batch of any process has used has None for a
    gradient, and AdamW leaves it alone: no step, no decay, no moment. Zeros would move it. Build it in every
    process.
    """

    def __init__(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._used: set[str] = set()
        for part in (module for module in model.modules() if isinstance(module, FSDPModule)):
            part.unshard()  # makes the whole tensors that gradients arrive at; FSDP2 keeps these objects
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and not is_cut(parameter):
                    parameter.register_post_accumulate_grad_hook(partial(self._note, name))
            part.reshard()

    def take(self) -> list[bool]:
        """Return, in the order of the model's trained parameters, which had a gradient; start anew."""
        flags = [name in self._used for name in self._names]
        self._used.clear()
        return flags

    def _note(self, name: str, parameter: torch.Tensor) -> None:
        self._used.add(name)


def is_cut(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is this process's piece of a larger one."""
    sharding = sys.modules.get("torch.distributed.tensor")  # where nobody imported it nothing is cut
    return sharding is not None and isinstance(tensor, sharding.DTensor)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's piece of a tensor, sharing its memory."""
    return tensor.to_local() if is_cut(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor put together from all processes' pieces; every process must call it."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def cut_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut a whole tensor, which every process has, as `like` is cut, on the device of `like`."""
    if not is_cut(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def put_together(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Return named tensors whole, cut ones on the CPU, one by one; every process must call it.

    Where `keep` is false the process only gives its pieces and gets nothing.
    """
    return dict(_wholes(tensors, keep))


def _wholes(tensors: Mapping[str, torch.Tensor], keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if keep:
            yield name, complete.cpu() if complete is not tensor else tensor
