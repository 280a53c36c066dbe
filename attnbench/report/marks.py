"""The marks of series as outlines, for tables and charts alike."""

from __future__ import annotations

import math

_ARM = 0.36  # half the width of a cross's arms


def _turned(points: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return [(round(x * cosine - y * sine, 2), round(x * sine + y * cosine, 2)) for x, y in points]


_TRIANGLE = [(0.0, -1.1), (1.05, 0.75), (-1.05, 0.75)]
_SQUARE = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
_CROSS = [
    (_ARM, -1.1), (_ARM, -_ARM), (1.1, -_ARM), (1.1, _ARM), (_ARM, _ARM), (_ARM, 1.1),
    (-_ARM, 1.1), (-_ARM, _ARM), (-1.1, _ARM), (-1.1, -_ARM), (-_ARM, -_ARM), (-_ARM, -1.1),
]  # fmt: skip

OUTLINES: dict[str, list[tuple[float, float]]] = {
    "o": [_turned([(1.0, 0.0)], 15 * i)[0] for i in range(24)],
    "s": _SQUARE,
    "^": _TRIANGLE,
    "D": _turned(_SQUARE, 45),
    "v": _turned(_TRIANGLE, 180),
    "P": _CROSS,
    "X": _turned(_CROSS, 45),
}
"""Outline of every marker of matplotlib that series have, of radius 1, y downwards."""


def outline(mark: str, radius: float = 1.0) -> str:
    """Return a mark around the origin as the data of an SVG path."""
    return "M" + "L".join(f"{x * radius:.3g},{y * radius:.3g}" for x, y in OUTLINES[mark]) + "Z"
