"""The seven claims: the paper's words, its own numbers, and our test of each on the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.report.claims import quality
from attnbench.report.claims.finding import Finding, Verdict
from attnbench.report.claims.inside import less_oversmoothing
from attnbench.report.claims.overhead import negligible_overhead, overhead_in_the_paper, threshold
from attnbench.report.claims.separation import similar_classes_apart
from attnbench.results import Record, Result

Runs = Mapping[str, Sequence[Result]]
_OVER_SEEDS = (
    "t test of the difference of means, paired by seed, its residual variance pooled over the rows of the "
    "same size and guidance; Frechet distances by ratio. Supported where every comparison has p of 0.05 or "
    "less, contradicted where one goes the other way with p of 0.05 over their number"
)


class Checked(Record):
    """A claim and what was found of it, once for each run's data and models."""

    claim: str
    """C1 to C7."""
    words: str
    where: str
    """Where the paper says it."""
    paper: str
    """What the paper's own numbers say."""
    test: str
    findings: list[Finding]

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each data; not tested where there is none."""
        return [finding.verdict for finding in self.findings] or ["not tested"]


@dataclass(frozen=True, kw_only=True)
class _Claim:
    name: str
    words: str
    where: str
    paper: Callable[[], str]
    test: Callable[[], str]
    find: Callable[[Runs], list[Finding]]
    otherwise: str
    """Why there is no finding."""


def checklist(runs: Runs) -> list[Checked]:
    """Test every claim on the results of some runs, by name."""
    return [_checked(claim, runs) for claim in _CLAIMS]


def tested(claims: Sequence[Checked]) -> bool:
    """Tell whether any claim could be tested at all."""
    return any(verdict != "not tested" for claim in claims for verdict in claim.verdicts)


def _checked(claim: _Claim, runs: Runs) -> Checked:
    findings = claim.find(runs) or [Finding(on=", ".join(runs), verdict="not tested", why=claim.otherwise)]
    return Checked(
        claim=claim.name, words=claim.words, where=claim.where, paper=claim.paper(), test=claim.test(),
        findings=findings,
    )  # fmt: skip


_CLAIMS = (
    _Claim(
        name="C1",
        words="DyDi-LiT has a lower FID than DiT and Sana at each guidance scale",
        where="section 4.2, Tables 1, 2, 3, 7, 8",
        paper=quality.rivals_in_the_paper,
        test=lambda: _OVER_SEEDS,
        find=quality.beats_rivals,
        otherwise="no run has DyDiLA beside softmax or linear attention in one skeleton, nor their recipes",
    ),
    _Claim(
        name="C2",
        words="its additional computation over Sana is negligible",
        where="abstract, Fig. 1",
        paper=overhead_in_the_paper,
        test=lambda: (
            f"ratio to Sana of at most {threshold():.3f}: the largest ratio among the GFLOPs of one size in "
            "Table 1, which the paper calls comparable (section 4.2). Counts are exact; latency by its 95 % "
            "interval of paired rounds. Parameters are shown, not judged: the claim is about computation"
        ),
        find=negligible_overhead,
        otherwise="no run has DyDiLA beside linear attention with a profile",
    ),
    _Claim(
        name="C3",
        words="each component of DyDiLA helps: every rung of Table 4 has a lower FID than the one above",
        where="section 5, Table 4",
        paper=quality.rungs_in_the_paper,
        test=lambda: _OVER_SEEDS,
        find=quality.each_rung_helps,
        otherwise="no run has two rungs of Table 4 that follow each other: attnbench run table4_components",
    ),
    _Claim(
        name="C4",
        words="token-wise differences beat differences of attention maps in FID",
        where="section 5, Table 5, where the paper calls the difference not significant",
        paper=quality.paradigms_in_the_paper,
        test=lambda: _OVER_SEEDS,
        find=quality.token_beats_map,
        otherwise="no run has both paradigms: attnbench run table5_paradigms",
    ),
    _Claim(
        name="C5",
        words="lambda that starts at 0.01 beats lambda that starts larger in deeper blocks",
        where="section 5, Table 6",
        paper=quality.initialisations_in_the_paper,
        test=lambda: _OVER_SEEDS,
        find=quality.small_lambda_beats_increasing,
        otherwise="no run has both initialisations: attnbench run table6_lambda_init",
    ),
    _Claim(
        name="C6",
        words="its attention is less over-smoothed than Sana's",
        where="abstract, section 1, Fig. 6",
        paper=lambda: "shown in pictures (Fig. 6), no number is printed",
        test=lambda: (
            "over seeds as for C1, on the implied attention maps of the trained models: higher variance of a "
            "row, higher effective rank, less similar tokens; all three"
        ),
        find=less_oversmoothing,
        otherwise="no run has DyDiLA beside linear attention with the measurements of the stage diagnose; "
        "add `diagnose: {}` to the suite and run it again",
    ),
    _Claim(
        name="C7",
        words="its samples of similar classes lie further apart than DiT's and Sana's",
        where="appendix D, Fig. 11",
        paper=lambda: "shown in pictures (Fig. 11), no number is printed",
        test=lambda: (
            "over seeds as for C1, at each guidance scale, on the classes that lie closest in real images: "
            "higher accuracy of a nearest-neighbour vote and higher silhouette in the feature space; both"
        ),
        find=similar_classes_apart,
        otherwise="no run has DyDiLA beside softmax or linear attention in one skeleton, nor their recipes",
    ),
)
