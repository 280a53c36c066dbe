"""How evenly routers chose while a model trained: what the stage `train` leaves of it, as curves by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Curve = Sequence[tuple[float, float]]
Kind = Literal["evenness", "least_evenness", "largest_share"]
KINDS: tuple[Kind, ...] = ("evenness", "least_evenness", "largest_share")
"""Mean evenness over blocks, that of the least even block, and the largest share of one option in a block."""
_NAME = re.compile(rf"^routing:(?P<router>.+):(?P<kind>{'|'.join(KINDS)})$", re.DOTALL)


def curve_name(router: str, kind: Kind) -> str:
    """Return what a router's curve is called.

    >>> curve_name("projector_q", "evenness")
    'routing:projector_q:evenness'
    """
    return f"routing:{router}:{kind}"


def routers_of(names: Iterable[str]) -> list[str]:
    """Return the routers that curves of these names are about, in order of appearance."""
    found = (_NAME.match(name) for name in names)
    return list(dict.fromkeys(match["router"] for match in found if match))


def evenness(shares: Sequence[float]) -> float:
    """Return the entropy of shares over its largest value: 1 where all are alike; 1 for a single option too.

    >>> evenness([0.5, 0.5]), evenness([1.0, 0.0])
    (1.0, 0.0)
    """
    if len(shares) < 2:
        return 1.0
    return abs(-math.fsum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares)))


def balance(shares: Sequence[Sequence[float]]) -> Mapping[Kind, float]:
    """Return the three numbers of a router from the shares of its options in each block that has it."""
    even = [evenness(of_block) for of_block in shares]
    return {
        "evenness": math.fsum(even) / len(even),
        "least_evenness": min(even),
        "largest_share": max(map(max, shares)),
    }
