"""Where values stand along an axis, and the round numbers beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = ((50**0.5, 10), (10**0.5, 5), (2**0.5, 2), (0, 1))  # from there on the next round number is nearer
_MOST_TICKS = 9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Return where a value stands: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 6) -> list[float]:
        """Return round numbers within the axis, in order.

        >>> Scale(low=0.0, high=1.1, log=False).ticks(5)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        if not self.log:
            return self._steps(about)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**power for power in powers for f in factors]
            found = [float(f"{value:.6g}") for value in found if self.low <= value <= self.high]
            if len(found) <= _MOST_TICKS:
                break
        return found if len(found) > 2 else self._steps(about)

    def _steps(self, about: int) -> list[float]:
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for least, factor in _STEPS if rough / power >= least)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def scale_of(values: Sequence[float], *, log: bool, margin: float) -> Scale:
    """Return the axis that holds all values with a margin, a share of their range, on both sides."""
    low, high = min(values), max(values)
    if log and low > 0:
        if low == high:
            return Scale(low=low / 2, high=high * 2, log=True)
        wider = (high / low) ** margin
        return Scale(low=low / wider, high=high * wider, log=True)
    room = (high - low) * margin or abs(high) / 2 or 1.0
    return Scale(low=low - room, high=high + room, log=False)


def tick_text(value: float) -> str:
    """Return a tick as it is written: no power of ten where a plain number is as short.

    >>> tick_text(0.02), tick_text(20000.0), tick_text(-1.5)
    ('0.02', '20,000', '−1.5')
    """
    text = f"{value:,.10g}" if value == 0 or 1e-4 <= abs(value) < 1e7 else f"{value:g}"
    return text.replace("-", "−")
