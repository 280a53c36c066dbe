"""The claims: supported only where the test says so, contradicted where it does, and everything else said."""

from __future__ import annotations

import random

import pytest
from paper_cases import SHIFTS, full_run, paper_result

from attnbench.report.claims.checklist import Checked, checklist
from attnbench.report.claims.finding import together
from attnbench.report.claims.overhead import threshold
from attnbench.report.claims.quality import rivals_in_the_paper
from attnbench.results import Measurement, Result


def seeded(table: str, seeds: int = 3, spread: float = 0.1, **changes: float) -> list[Result]:
    """Return a table's runs over seeds: published values times a factor of the seed, and a rest."""
    rng, results = random.Random(1), []
    for seed in range(seeds):
        factor = rng.gauss(1, 0.03)  # the same in every row
        for result in full_run(table, {**SHIFTS, "fid": 0.0}, seed):
            fid = result.measurement("FID")
            assert fid is not None
            value = (
                factor * fid.value
                + rng.gauss(0, spread)
                + changes.get(result.axes["recipe"].replace("-", "_"), 0)
            )
            results.append(replaced(result, Measurement(name="FID", values=[value], n=fid.n)))
    return results


def replaced(result: Result, *measurements: Measurement) -> Result:
    """Return a result with some measurements put in or replaced."""
    names = {m.name for m in measurements}
    kept = [m for m in result.measurements if m.name not in names]
    return result.model_copy(update={"measurements": [*kept, *measurements]})


def claim(name: str, results: list[Result]) -> Checked:
    """Return one claim tested on a run."""
    return next(one for one in checklist({"a run": results}) if one.claim == name)


@pytest.mark.parametrize(
    ("name", "table"), [("C1", "table1"), ("C1", "table7"), ("C4", "table5"), ("C5", "table6")]
)
def test_the_papers_own_numbers_support_its_claims_over_seeds(name: str, table: str) -> None:
    """With a rest of 0.02 between seeds, every printed gap of these tables is found."""
    found = claim(name, seeded(table, spread=0.02))
    assert set(found.verdicts) == {"supported"}
    assert len(found.findings) == (3 if table == "table1" else 1)  # sizes
    assert all("p = " in one.said for one in found.findings[0].evidence)


def test_the_first_rung_contradicts_its_claim_by_the_papers_own_numbers() -> None:
    """28.00 to 28.20 is a rise; with a rest of 0.02 it is seen, with one of 1 nothing is."""
    found = claim("C3", seeded("table4", spread=0.02))
    assert found.verdicts == ["contradicted"]
    assert "1 of 5 comparisons go the other way" in found.findings[0].why
    assert "raises it from 28.00 to 28.20" in found.paper
    assert claim("C3", seeded("table4", spread=1.0)).verdicts == ["not distinguishable"]


def test_a_missing_rung_cannot_support() -> None:
    """What ran is shown, what is missing named."""
    some = [r for r in seeded("table4", focused_kernel_s=-0.26) if r.axes["recipe"] != "dynamic-projection-s"]
    (finding,) = claim("C3", some).findings
    assert finding.verdict == "not tested"
    assert "no +dynamic projection module at CFG=4.0" in finding.why
    assert len(finding.evidence) == 3


def test_a_claim_turned_around_is_contradicted() -> None:
    """DyDi-LiT-S made 40 worse than it is."""
    found = claim("C1", seeded("table7", dydi_lit_s=40.0))
    assert found.verdicts == ["contradicted"]
    assert {one.verdict for one in found.findings[0].evidence} == {"contradicted"}


def test_one_seed_tests_no_claim_about_quality() -> None:
    """Whatever the numbers; the evidence is still shown."""
    checked = checklist({name: full_run(name) for name in ("table1", "table4", "table5", "table6")})
    for one in checked:
        if one.claim in ("C1", "C3", "C4", "C5"):
            assert set(one.verdicts) == {"not tested"}, one.claim
            assert "one seed supports nothing about methods" in one.findings[0].why
            assert one.findings[0].evidence


def test_runs_of_other_settings_do_not_meet() -> None:
    """A DyDi-LiT of 1,000 steps is not held against a Sana of 100,600; each finding names its settings."""
    sana = [r for r in seeded("table6") if r.axes["recipe"] == "increasing-lambda-s"]
    short = [
        paper_result("token-differential-s", "table6", "4.0", {"fid": 20.0}, seed, train={"steps": 1000})
        for seed in range(3)
    ]
    assert claim("C5", sana + short).verdicts == ["not tested"]


def test_negligible_is_what_the_paper_calls_comparable() -> None:
    """The widest size of Table 1 is L: 23.58 over 22.45."""
    assert threshold() == pytest.approx(23.58 / 22.45)
    assert rivals_in_the_paper().startswith("lower than both at 16 of 16")


@pytest.mark.parametrize(("full", "verdict"), [(6.1e9, "supported"), (6.8e9, "contradicted")])
def test_overhead_is_judged_by_counts_without_seeds(full: float, verdict: str) -> None:
    """Sana-S at 6.0 G in both counts; parameters are shown, not judged."""
    run = [r for r in full_run("table7") if r.axes["recipe"] in ("sana-s", "dydi-lit-s")]
    results = [
        replaced(
            r,
            Measurement(name="macs_full@256", values=[full if r.axes["recipe"] == "dydi-lit-s" else 6.0e9]),
            Measurement(name="params", values=[40e6 if r.axes["recipe"] == "dydi-lit-s" else 30e6]),
        )
        for r in run
    ]
    (finding,) = claim("C2", results).findings
    assert finding.verdict == verdict
    assert [one.verdict for one in finding.evidence] == ["not tested", "supported", verdict]


def test_latency_over_the_threshold_by_its_rounds() -> None:
    """Twice the time in every round; the machine's mood cancels in pairs."""
    run = [r for r in full_run("table7") if r.axes["recipe"] in ("sana-s", "dydi-lit-s")]
    results = []
    for r in run:
        times = [[(2 if r.axes["recipe"] == "dydi-lit-s" else 1) * (10 + mood)] for mood in range(8)]
        timed = Measurement(
            name="latency_ms@256",
            values=[t[0] for t in times],
            rounds=times,
            clean_rounds=[True] * 8,
            session="s",
        )
        results.append(replaced(r, timed))
    (finding,) = claim("C2", results).findings
    assert finding.verdict == "contradicted"
    assert "ratio 2.000 (2.000 to 2.000): slower" in finding.evidence[-1].said


def test_oversmoothing_needs_the_stage_diagnose_and_all_three_measures() -> None:
    """Less smooth in each: supported; in all but one: the one that is missing is named."""
    rng, results = random.Random(2), []
    for result in seeded("table7"):
        if result.axes["recipe"] in ("sana-s", "dydi-lit-s"):
            up = 1.0 if result.axes["recipe"] == "dydi-lit-s" else 0.0
            values = {"row_variance": 2 + up, "effective_rank": 9 + up, "token_similarity": 0.9 - 0.3 * up}
            inside = [
                Measurement(name=f"diagnose:{name}", values=[value + rng.gauss(0, 0.01)])
                for name, value in values.items()
            ]
            results.append(replaced(result, *inside))
    assert claim("C6", results).verdicts == ["supported"]
    assert len(claim("C6", results).findings[0].evidence) == 3
    without = [replaced(r, Measurement(name="diagnose:effective_rank", values=[])) for r in results]
    missing = "not measured of both in one way: diagnose:effective_rank"
    assert missing in claim("C6", without).findings[0].why
    ranks = [r.measurement("diagnose:effective_rank") for r in results]
    unlike = [
        replaced(r, m.model_copy(update={"note": r.axes["recipe"]}))
        for r, m in zip(results, ranks, strict=True)
        if m
    ]
    assert missing in claim("C6", unlike).findings[0].why
    assert "add `diagnose: {}`" in claim("C6", seeded("table7")).findings[0].why


KNN, SILHOUETTE = "knn_accuracy", "silhouette"  # of the literature's Inception: without a suffix


def with_separation(gains: dict[str, tuple[float, float]], seeds: int = 3, note: str = "") -> list[Result]:
    """Return Table 7's rows whose similar classes separate by 0.5, 0.1 and a gain, the rest 0.005."""
    rng, results = random.Random(3), []
    moods = [rng.gauss(0, 0.05) for _ in range(seeds)]  # the same in every row
    for result in seeded("table7", seeds):
        up = gains.get(result.axes["recipe"])
        if up is not None:
            values = [
                level + gain + moods[result.case["seed"]] + rng.gauss(0, 0.005)
                for level, gain in zip((0.5, 0.1), up, strict=True)
            ]
            found = [
                Measurement(name=name, values=[value], n=250, better="higher", note=f"5 classes{note}")
                for name, value in zip((KNN, SILHOUETTE), values, strict=True)
            ]
            results.append(replaced(result, *found))
    return results


def test_similar_classes_apart_needs_both_measures_and_both_rivals() -> None:
    """Higher than both rivals in both: supported; in one below a rival: contradicted; over seeds only."""
    apart = with_separation({"dit-s": (0.0, 0.0), "sana-s": (-0.05, -0.05), "dydi-lit-s": (0.1, 0.1)})
    (finding,) = claim("C7", apart).findings
    scales = {r.case["sample"]["guidance_scale"] for r in apart}
    assert (finding.verdict, len(finding.evidence)) == ("supported", 4 * len(scales))
    assert all("3 seeds" in one.said for one in finding.evidence)
    assert finding.evidence[0].ours - finding.evidence[0].theirs == pytest.approx(0.1, abs=0.03)
    beaten = with_separation({"dit-s": (0.0, 0.0), "sana-s": (0.0, 0.0), "dydi-lit-s": (0.1, -0.1)})
    assert claim("C7", beaten).verdicts == ["contradicted"]
    alike = with_separation({"dit-s": (0.0, 0.0), "sana-s": (0.0, 0.0), "dydi-lit-s": (0.0, 0.0)})
    assert claim("C7", alike).verdicts == ["not distinguishable"]
    alone = with_separation({"dit-s": (0.0, 0.0), "dydi-lit-s": (0.1, 0.1)})
    assert claim("C7", alone).verdicts == ["not tested"]
    assert "no Sana-S at CFG=" in claim("C7", alone).findings[0].why


def test_similar_classes_are_not_tested_on_one_seed_nor_on_what_was_not_measured() -> None:
    """One seed; results of an earlier version; too few samples; other classes on one side."""
    gains = {"dit-s": (0.0, 0.0), "sana-s": (0.0, 0.0), "dydi-lit-s": (0.1, 0.1)}
    (finding,) = claim("C7", with_separation(gains, seeds=1)).findings
    assert finding.verdict == "not tested"
    assert "one seed supports nothing about methods" in finding.why
    assert finding.evidence[0].theirs == pytest.approx(finding.evidence[0].ours - 0.1, abs=0.03)
    older = [r for r in seeded("table7") if r.axes["recipe"] in gains]
    (finding,) = claim("C7", older).findings
    assert (finding.verdict, finding.evidence) == ("not tested", ())
    assert "evaluated before attnbench measured" in finding.why
    assert "remove store/evaluate" in finding.why
    few = [
        replaced(r, *(Measurement(name=name, values=[], note="not measured: fewer than 10 samples")
                      for name in (KNN, SILHOUETTE)))
        for r in older
    ]  # fmt: skip
    assert "not measured: fewer than 10 samples" in claim("C7", few).findings[0].why
    mixed = with_separation({n: g for n, g in gains.items() if n != "dydi-lit-s"})
    mixed += with_separation({"dydi-lit-s": (0.1, 0.1)}, note=" of another choice")
    assert "measured of other classes" in claim("C7", mixed).findings[0].why
    assert (
        "no run has DyDiLA" in claim("C7", [r for r in older if r.axes["recipe"] == "sana-s"]).findings[0].why
    )


def test_verdicts_on_several_comparisons() -> None:
    """One that goes the other way counts only beyond what their number makes likely."""
    assert together(["supported", "contradicted"], [0.001, 0.04])[0] == "not distinguishable"
    assert together(["supported", "contradicted"], [0.001, 0.02])[0] == "contradicted"
    assert together(["supported", "supported"], [0.04, 0.05])[0] == "supported"
    assert together(["supported", "not tested"], [0.04, None])[0] == "not tested"
    assert together(["supported"], [0.04], "no rung")[0] == "not tested"
    assert together([], [])[0] == "not tested"


def of_recipes(*names: str) -> list[Result]:
    """Return three seeds of some rows of Table 7."""
    return [result for result in seeded("table7") if result.axes["recipe"] in names]


def test_the_numbers_beside_a_test_are_those_of_its_seeds() -> None:
    """A third seed of one side alone moves neither the ratio nor the means that stand beside it."""
    first, second = "map-differential-s", "token-differential-s"
    values = [(first, (10.0, 10.1, 2.0)), (second, (9.0, 9.11))]
    results = [
        paper_result(name, "table5", "4.0", {"fid": value}, seed)
        for name, of_seeds in values
        for seed, value in enumerate(of_seeds)
    ]
    (evidence,) = claim("C4", results).findings[0].evidence
    assert (evidence.ours, evidence.theirs) == pytest.approx((9.055, 10.05))
    assert "2 seeds" in evidence.said


def test_of_two_runs_the_seed_that_finished_counts() -> None:
    """A case that failed in the first run and finished in the second is tested over all its seeds."""
    results = of_recipes("dit-s", "sana-s", "dydi-lit-s")
    lost = [
        r.model_copy(update={"status": "failed", "reason": "killed", "measurements": []})
        if r.case["seed"] == 0
        else r
        for r in results
    ]
    (one,) = [c for c in checklist({"first": lost, "second": results}) if c.claim == "C1"]
    assert all("3 seeds" in evidence.said for evidence in one.findings[0].evidence)


def test_a_seed_measured_twice_with_other_results_is_not_chosen_in_silence() -> None:
    """Two runs that disagree on one case: the claim is not tested on either's number."""
    results = of_recipes("dit-s", "sana-s", "dydi-lit-s")
    other = [replaced(r, Measurement(name="FID", values=[1.0], n=30_000)) for r in results[:1]]
    (one,) = [c for c in checklist({"first": results, "second": other}) if c.claim == "C1"]
    assert one.verdicts == ["not tested"]
    assert "differ in FID; leave one run out" in one.findings[0].why


def test_overhead_is_read_from_a_seed_that_finished() -> None:
    """The first seed of Sana failed before its profile."""
    results = [
        r.model_copy(update={"status": "failed", "measurements": []})
        if (r.axes["recipe"], r.case["seed"]) == ("sana-s", 0)
        else r
        for r in of_recipes("sana-s", "dydi-lit-s")
    ]
    assert claim("C2", results).verdicts == ["supported"]


def test_a_claim_that_is_not_distinguishable_says_what_its_comparisons_are() -> None:
    """One that holds, one that does not, one that goes the other way within chance."""
    assert together(["not distinguishable"], [0.4])[1] == "the comparison is not significant"
    said = together(["supported", "not distinguishable", "contradicted"], [0.01, 0.4, 0.04])[1]
    assert said.startswith("1 of 3 comparisons hold, 1 are not significant, 1 go the other way")
