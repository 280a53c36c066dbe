"""How many CPU threads a pass is timed with: as many as help it; and whether bf16 helps it."""

from __future__ import annotations

from attnbench.profiling.protocol import Refusal, Tried, TriedPrecisions

WORTH = 0.9  # of the time with fewer threads: what more of them must at least save


def chosen_threads(tried: Tried | Refusal, most: int) -> tuple[int, str]:
    """Return the number of threads to use, and what to say where it is not the most there can be.

    More threads are taken while they make a pass at least a tenth faster. Beside other work, or where the
    system puts the threads of a short pass on one core, more of them are slower.
    """
    if isinstance(tried, Refusal):
        return most, ""  # the row itself will say why
    pass_ms = tried.pass_ms
    chosen = min(pass_ms)
    for number in sorted(pass_ms):
        if pass_ms[number] < WORTH * pass_ms[chosen]:
            chosen = number
    if chosen == most:
        return most, ""
    one = "one thread" if chosen == 1 else f"{chosen} threads"
    return chosen, (
        f"a pass takes {pass_ms[most]:.3g} ms with {most} CPU threads and {pass_ms[chosen]:.3g} ms with "
        f"{one}: {one} for all rows (--threads; in a suite: profile.threads)"
    )


def slow_bf16(tried: TriedPrecisions | Refusal) -> str:
    """Return what to say of bf16 where it makes a pass more than a tenth slower, else nothing.

    Processors without instructions for it convert every operand, and small models pay for autocast alone.
    """
    if isinstance(tried, Refusal) or WORTH * tried.bf16_ms <= tried.fp32_ms:
        return ""
    return (
        f"a pass takes {tried.bf16_ms:.3g} ms in bf16 and {tried.fp32_ms:.3g} ms in fp32 on this CPU, "
        f"{tried.bf16_ms / tried.fp32_ms:.1f} times as long: its times in bf16 say nothing of a GPU's "
        "(--precision; in a suite: profile.precision)"
    )
