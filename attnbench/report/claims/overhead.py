"""C2: negligible overhead, by counts and by latency, against a threshold from the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnbench.report.claims.contests import Contest, contests
from attnbench.report.claims.finding import Evidence, Finding, Verdict
from attnbench.report.claims.quality import OURS, rows_of
from attnbench.report.configurations import Configuration, seed_of
from attnbench.report.paper.published import paper_table
from attnbench.report.quantities import LATENCY, SIZE, main_resolution
from attnbench.report.tables import significant
from attnbench.report.timings import DISTURBED, time_ratio
from attnbench.results import Measurement, Result

_SANA = "sana"


def threshold() -> float:
    """Return the largest ratio among the GFLOPs of one size in Table 1, which the paper calls comparable."""
    table = paper_table("table1")
    by_size = [[row.gflops or 0.0 for row in table.rows if row.size == size] for size in table.sizes]
    return max(max(of_size) / min(of_size) for of_size in by_size)


def overhead_in_the_paper() -> str:
    """Say the largest printed ratio of DyDi-LiT's GFLOPs to Sana's."""
    ratios = []
    for name in ("table1", "table2", "table7"):
        table = paper_table(name)
        for size in table.sizes:
            rows = rows_of(table, size)
            ratios.append((table.rows[rows[OURS]].gflops or 0.0) / (table.rows[rows[_SANA]].gflops or 1.0))
    return f"printed GFLOPs are at most {max(ratios):.4f} times Sana's, by a count without routed projections"


def negligible_overhead(runs: Mapping[str, Sequence[Result]]) -> list[Finding]:
    """Test C2 for every pair of models that was profiled; neither seeds nor guidance matter to it."""
    table = paper_table("table1")
    found: dict[str, Finding] = {}
    for contest in (contest for group in contests(table, runs).values() for contest in group):
        rows = rows_of(table, contest.size)
        sides = [contest.sides.get(rows[family]) for family in (OURS, _SANA)]
        if contest.on not in found and sides[0] is not None and sides[1] is not None:
            one = _finding(contest, sides[0], sides[1])
            if one.evidence:
                found[contest.on] = one
    return list(found.values())


def _finding(contest: Contest, ours: Configuration, theirs: Configuration) -> Finding:
    verdict: Verdict
    a, b = _profiled(ours, theirs)
    side = main_resolution(a)
    found = [_count(quantity.name, quantity.title, a, b, side) for quantity in SIZE]
    evidence = tuple(one for one in (*found, _latency(a, b, side)) if one is not None)
    judged = [one.verdict for one in evidence if one.verdict != "not tested"]
    if "contradicted" in judged:
        over = [one.what.split(":")[0] for one in evidence if one.verdict == "contradicted"]
        verdict, why = "contradicted", f"beyond {threshold():.3f}: {', '.join(over)}"
    elif judged and set(judged) == {"supported"}:
        names = [one.what.split(":")[0] for one in evidence if one.verdict == "supported"]
        verdict, why = "supported", f"within {threshold():.3f}: {', '.join(names)}"
    else:
        verdict = "not distinguishable" if judged else "not tested"
        why = (
            "the interval of latency holds the threshold" if judged else "nothing that is judged was measured"
        )
    return Finding(on=contest.on, verdict=verdict, why=why, evidence=evidence)


def _profiled(ours: Configuration, theirs: Configuration) -> tuple[Result, Result]:
    """Return the first seed that finished in both, else the first result of each."""
    sides = [{seed_of(r): r for r in side.results if r.status == "ok"} for side in (ours, theirs)]
    both = sorted(sides[0].keys() & sides[1].keys())
    return (sides[0][both[0]], sides[1][both[0]]) if both else (ours.results[0], theirs.results[0])


def _count(name: str, title: str, ours: Result, theirs: Result, side: int | None) -> Evidence | None:
    found = [result.measurement(name if name == "params" else f"{name}@{side}") for result in (ours, theirs)]
    a, b = found
    if a is None or b is None or not a.values or not b.values or b.value <= 0:
        return None
    ratio = a.value / b.value
    verdict: Verdict = "supported" if ratio <= threshold() else "contradicted"
    judged = name != "params"
    return Evidence(
        what=title + ("" if name == "params" else f" at {side} px"),
        ours=a.value,
        theirs=b.value,
        said=f"ratio {significant(ratio)}" + ("" if judged else ", not judged"),
        verdict=verdict if judged else "not tested",
    )


def _latency(ours: Result, theirs: Result, side: int | None) -> Evidence | None:
    a, b = (_timed(result, f"{LATENCY.name}@{side}") for result in (ours, theirs))
    if a is None or b is None:
        return None
    ratio = time_ratio(a, b, same_environment=ours.environment == theirs.environment)
    shown = "no ratio" if ratio.value is None else f"ratio {significant(ratio.value)}"
    verdict: Verdict = "not tested"
    if ratio.interval is not None:
        low, high = ratio.interval
        shown += f" ({significant(low)} to {significant(high)})"
        verdict = "not tested" if ratio.words == DISTURBED else _against_threshold(low, high)
    machine = ours.environment
    return Evidence(
        what=f"{LATENCY.title} at {side} px on {machine.cpu if machine.device == 'cpu' else machine.device}",
        ours=a.value,
        theirs=b.value,
        said=f"{shown}: {ratio.words}",
        verdict=verdict,
    )


def _against_threshold(low: float, high: float) -> Verdict:
    if high <= threshold():
        return "supported"
    return "contradicted" if low > threshold() else "not distinguishable"


def _timed(result: Result, name: str) -> Measurement | None:
    measured = result.measurement(name)
    return measured if measured is not None and measured.values and measured.value > 0 else None
