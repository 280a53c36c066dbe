"""How many bytes a pass must move through memory if all is fused that can be: a roofline's other half.

One definition for every attention, derived from what runs and from nothing a backend declares. Each
contraction (matrix product, convolution, fused attention: whatever the counters have a formula for) reads its
operands and writes its result once; weights are read once a pass. All else - norms, activations, modulation,
residual sums, reshapes, look-ups - is taken as fused into a contraction and moves nothing. So fused softmax
attention moves q, k, v and its output and no N x N map, while a map that the code keeps between two products
moves twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attnbench.contract import AttentionContext
from attnbench.errors import UnsupportedError
from attnbench.models import build_model, fuse_for_inference
from attnbench.models.skeleton import Block
from attnbench.profiling.formulas import EXTRA_TORCH_FORMULAS
from attnbench.profiling.protocol import Workload
from attnbench.profiling.tracing import MetaGroupedMm

_STORED_BYTES = (
    4  # weights are fp32; bf16 is autocast's, whose copies an ideal execution makes while it reads
)
_COMPUTED_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one pass, all its images together."""

    weights: int
    """Parameters and buffers that contractions read."""
    activations: int
    """Their other operands, and their results."""

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.activations


def images_per_pass(workload: Workload) -> int:
    """Return how many images the network sees in a pass: guidance doubles a sampler step's."""
    return workload.batch_size * (2 if workload.mode == "sample" else 1)


def pass_traffic(workload: Workload) -> Traffic:
    """Return the bytes of a pass, on the meta device: nothing is allocated or computed.

    Raises UnsupportedError of a training step and of the scope with a decoder, whose traffic is not modelled.
    """
    if workload.mode == "train" or workload.scope == "end-to-end":
        raise UnsupportedError(
            "bytes moved are known of forward passes and sampler steps, of attention, block and model; got "
            f"mode {workload.mode}, scope {workload.scope}"
        )
    config, num, side = workload.config, images_per_pass(workload), workload.input_size
    model = build_model(config, side, workload.num_classes, device="meta")
    model = cast("Any", fuse_for_inference(model.to("meta")))
    with torch.device("meta"):
        t = torch.ones(num)
        if workload.scope == "model":
            inputs = (
                torch.empty(num, config.in_channels, side, side),
                t,
                torch.empty(num, dtype=torch.int64),
            )
            return count_traffic(model, lambda: model(*inputs), workload.precision)
        layer_idx = config.depth // 2  # the middle block, as is timed
        block = cast("Block", model.blocks[layer_idx])
        part = block.attn if workload.scope == "attention" else block
        tokens = torch.empty(num, model.grid[0] * model.grid[1], config.dim)
        context = AttentionContext(
            grid=model.grid, timestep=t, conditioning=torch.empty(num, config.dim), layer_idx=layer_idx
        )
        decodes = workload.scope == "block" and layer_idx >= config.encoder_depth
        condition = (torch.empty_like(tokens),) if decodes else ()
        return count_traffic(part, lambda: part(tokens, context, *condition), workload.precision)


def count_traffic(module: nn.Module, run: Callable[[], object], precision: str = "fp32") -> Traffic:
    """Return the bytes of `run`, a pass of `module` on the meta device in fp32, as if in `precision`."""
    ledger = _Ledger([*module.parameters(), *module.buffers()], _COMPUTED_BYTES[precision])
    with torch.no_grad(), MetaGroupedMm(), _Contractions(ledger), _FusedAttention(ledger):
        run()
    return Traffic(weights=ledger.weight_bytes, activations=ledger.activation_bytes)


class _Ledger:
    """Adds up what contractions read and write."""

    def __init__(self, weights: Iterable[torch.Tensor], computed_bytes: int) -> None:
        # by storage: a weight stays itself when it is transposed, cut or viewed
        self.sizes = {_storage(weight): weight.numel() for weight in weights}
        self.read: dict[int, int] = {}
        self.computed_bytes = computed_bytes
        self.activation_bytes = 0
        self.paused = False

    @property
    def weight_bytes(self) -> int:
        """Each weight counts once, however often it is used, and only as much of it as is."""
        return _STORED_BYTES * sum(min(self.sizes[key], read) for key, read in self.read.items())

    def add(self, *tensors: torch.Tensor) -> None:
        """Count tensors that are read or written."""
        for tensor in tensors:
            key, num = _storage(tensor), _distinct(tensor)
            if key in self.sizes:
                self.read[key] = self.read.get(key, 0) + num
            else:
                size = self.computed_bytes if tensor.is_floating_point() else tensor.element_size()
                self.activation_bytes += num * size


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _distinct(tensor: torch.Tensor) -> int:
    """Return the elements of a tensor without those that an expanded axis repeats."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in pairs if stride != 0 or size == 0)


class _Contractions(TorchDispatchMode):
    """Enter every operation that the counters have a formula for."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self.ledger, self.formulas = ledger, flop_registry.keys() | EXTRA_TORCH_FORMULAS.keys()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.ledger.paused and getattr(func, "_overloadpacket", func) in self.formulas:
            # of several results the first is the contraction's; the others are kept for a backward pass
            first = output if isinstance(output, torch.Tensor) else output[0]
            self.ledger.add(*_tensors((*args, *(kwargs or {}).values())), first)
        return output


class _FusedAttention(TorchFunctionMode):
    """Enter scaled_dot_product_attention as one operation: the meta device would take it apart."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.ledger.paused = True
        try:
            output = func(*args, **kwargs)
        finally:
            self.ledger.paused = False
        self.ledger.add(*_tensors((*args, *kwargs.values())), output)
        return output


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
