"""What `attnbench profile` prints before it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.console.plan_view import duration

if TYPE_CHECKING:
    from attnbench.specs import ProfileSpec


def profile_announcement(num_models: int, spec: ProfileSpec, device: str, within_s: float = 0.0) -> str:
    """Return what is going to be measured and the longest it may take, as one sentence."""
    resolutions = spec.resolutions or []
    num_rows = num_models * len(resolutions)
    sides = ", ".join(map(str, resolutions))
    rows = f"{_count(num_rows, 'row')} ({_count(num_models, 'model')} at {sides} px) on {device}"
    if not {"latency", "memory"} & set(spec.measure):
        return f"profile: {rows}; counted only, seconds per row, nothing is timed"
    bound = num_rows * spec.timeout_s
    if within_s and within_s < bound:
        return (
            f"profile: {rows}; about {duration(within_s)} at most (--within): rows that do not fit into it "
            "are left out, the slowest first"
        )
    return (
        f"profile: {rows}; at most {duration(bound)} of measuring ({spec.timeout_s:g} s a row, --timeout-s), "
        "besides some seconds a row to count and to start its process"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
