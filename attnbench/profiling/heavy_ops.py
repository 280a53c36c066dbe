"""Which operations multiply and add, and the rule that none of them may go uncounted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attnbench.errors import UncountedOpError

_BUILT_IN_NAMESPACES = ("aten", "prims", "prim")
_CALLS = ("PythonOp", "CallFunction", "CallMethod")  # of a trace: code of somebody else's
# Whole words of an operation's name. `upsample_bilinear2d` is one word, and no contraction.
_HEAVY_WORDS = re.compile(
    r"(^|_)("
    r"mm|bmm|addmm|addbmm|baddbmm|mv|addmv|dot|vdot|vecdot|matmul|einsum|tensordot"
    r"|linear|bilinear|trilinear|conv([123]d|olution)?|attention|encoder|lstm|gru|rnn|cdist"
    r"|fft|fft2|fftn|stft|int4pack|int8pack|pdist"
    r"|cholesky|svd|qr|geqrf|orgqr|ormqr|lu|eig|lstsq|triangular|inverse|pinverse|det|logdet|slogdet"
    r"|matrix_(exp|power|rank)|linalg_(?!norm|vector_norm|cross)\w+"
    r")(_|$)"
)


def is_light(op: str) -> bool:
    """Tell whether an operation (`namespace::name`) does no work of a matmul or a convolution.

    Only torch's own operations can be known to be light: whatever a custom one does is hidden.
    """
    namespace, _, name = op.partition("::")
    if namespace not in _BUILT_IN_NAMESPACES or name.startswith(_CALLS):
        return False
    return not _HEAVY_WORDS.search(name.partition(".")[0])


def refuse_uncounted(counter: str, ops: Iterable[str]) -> None:
    """Raise UncountedOpError naming every operation that is not light, because it has no formula."""
    unknown = sorted({op for op in ops if not is_light(op)})
    if unknown:
        raise UncountedOpError(
            f"{counter} has no formula for {', '.join(unknown)}, and counting it as zero would make the "
            "model look cheaper than it is; register one with "
            "torch.utils.flop_counter.register_flop_formula (both counters read it), or build the "
            "operation from matmuls and convolutions"
        )
