"""How many CPU threads a pass is timed with: as many as help it."""

from __future__ import annotations

from attnbench.profiling.protocol import Refusal, Tried

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
