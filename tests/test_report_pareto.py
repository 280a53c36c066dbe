"""The Pareto front: what may be called worse, and what the drawing says of the rest."""

import random
import re

import pytest
from report_cases import LABELS, disturbed_rounds, make_result, profile_row, with_measurement, with_profile

from attnbench.report.configurations import configurations
from attnbench.report.drawing import drawing, svg
from attnbench.report.pareto import (
    PARETO_COSTS,
    Point,
    dominates,
    draw_front,
    labels_caption,
    main_quality,
    pareto_front,
    pareto_points,
)
from attnbench.report.pareto_chart import pareto_drawings
from attnbench.report.pareto_costs import COSTS, Value, cost_of, quality_of, training_macs
from attnbench.report.quantities import quality_quantities
from attnbench.results import Measurement


def case(label, fd, *, half=0.1, latency=None, macs=None, seed=0, **changes):
    """Return a case with a distance and its interval; costs are those of `make_result` but where given."""
    result = make_result(label, latency or 0, **changes)
    result = with_measurement(
        result,
        Measurement(name="FD-digits", values=[fd], interval=None if half is None else (fd - half, fd + half)),
    )
    if macs is not None:
        result = with_measurement(result, Measurement(name="macs_full@8", values=[macs]))
    model = {**result.case["model"], "name": label}
    return result.model_copy(
        update={"case_id": f"{label}-{seed}", "case": {**result.case, "model": model, "seed": seed},
                "axes": {"seed": str(seed)}}
    )  # fmt: skip


def front_of(results, cost="macs"):
    return pareto_front(pareto_points(results, COSTS[cost], quality_quantities(results)[0]), "lower")


def test_worse_in_both_is_dominated_only_where_the_intervals_part():
    """Dearer and worse: dominated with intervals apart, undecided where they meet."""
    cheap = case("cheap", 1.0, macs=100)
    for distance, standing in ((1.21, "dominated"), (1.19, "undecided")):
        front = front_of([cheap, case("dear", distance, macs=200)])
        assert front.standing == ("front", standing)
        assert front.beaten_by == (None, 0 if standing == "dominated" else None)


def test_dearer_and_better_is_on_the_front():
    """A trade-off is none that anybody loses; the line goes by cost."""
    front = front_of([case("dear", 1.0, macs=200), case("cheap", 2.0, macs=100)])
    assert front.standing == ("front", "front")
    assert [point.label for point in front.line] == ["cheap", "dear"]


def test_equal_cost_that_is_counted_decides_by_quality():
    """Of the same multiply-adds the surely worse one is dominated."""
    assert front_of([case("a", 1.0, macs=100), case("b", 2.0, macs=100)]).standing == ("front", "dominated")


def test_what_has_no_interval_beats_nothing_and_is_not_beaten():
    """Nothing surely follows from an estimate whose uncertainty is not known, on either side."""
    for halves in ((None, 0.1), (0.1, None)):
        found = front_of([case("a", 1.0, half=halves[0], macs=1), case("b", 9.0, half=halves[1], macs=2)])
        assert found.standing == ("front", "undecided")
    sooner, later = (case(name, fd, latency=i) for i, (name, fd) in enumerate((("a", 1.0), ("b", 9.0))))
    assert front_of([sooner, later], "training-time").standing == ("front", "undecided")


def test_latency_goes_by_paired_rounds():
    """Rounds of one session decide; those of two sessions, whose machines may have differed, do not."""
    fast = with_profile(case("fast", 1.0), profile_row(0, 8))
    slow = with_profile(case("slow", 2.0), profile_row(1, 8))
    assert front_of([fast, slow], "latency").standing == ("front", "dominated")
    elsewhere = with_profile(case("slow", 2.0), profile_row(1, 8, session="another"))
    assert front_of([fast, elsewhere], "latency").standing == ("front", "undecided")


def test_disturbed_latencies_and_failed_cases_never_take_part():
    """A disturbed row beats nothing and is beaten by nothing; a failed case is no point."""
    row = profile_row(0, 8)
    shaken = row.model_copy(
        update={"rounds": disturbed_rounds(row.rounds, range(len(row.rounds))), "disturbed": "a neighbour"}
    )
    results = [
        with_profile(case("shaken", 1.0), shaken),
        with_profile(case("slow", 2.0), profile_row(1, 8)),
        with_profile(case("failed", 0.1), profile_row(0, 8)).model_copy(update={"status": "failed"}),
    ]
    front = front_of(results, "latency")
    assert [point.label for point in front.points] == ["shaken", "slow"]
    assert front.standing == ("disturbed", "front")


def test_seeds_are_one_point_with_the_interval_over_them():
    """Three seeds: their mean and t interval, wider than any image interval; one cost, an undisturbed one."""
    seeds = [case("a", fd, half=0.001, seed=i, macs=100) for i, fd in enumerate((1.0, 2.0, 3.0))]
    (found,) = configurations(seeds)
    value = quality_of(found, "FD-digits")
    # t(0.975, 2 df) = 4.3027, standard deviation 1
    assert (value.value, value.high - value.value) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))
    assert cost_of(found, COSTS["macs"]).exact
    (point,) = pareto_points(seeds, COSTS["macs"], quality_quantities(seeds)[0])
    assert point.several_seeds


def test_equal_models_are_rarely_called_worse():
    """200 comparisons of equally good trainings, the dearer one never better: at most 5 % dominated."""
    rng = random.Random(0)
    wrong = 0
    for _ in range(200):
        cheap, dear = (
            Point(
                label="",
                series=0,
                cost=Value(value=macs, low=macs, high=macs),
                quality=Value(value=fd, low=fd - 1.96, high=fd + 1.96),  # as wide as the noise makes it
            )
            for macs, fd in ((100.0, rng.gauss(5, 1)), (200.0, rng.gauss(5, 1)))
        )
        wrong += dominates(cheap, dear, "lower")
    assert wrong <= 10


def test_training_compute_is_three_forward_passes_an_image():
    """Steps x batch x 3 x multiply-adds; None where the batch is not known."""
    result = case("a", 1.0, macs=7.0)
    assert training_macs(result) is None
    training = {**result.case["train"], "batch_size": 32}
    known = result.model_copy(update={"case": {**result.case, "train": training}})
    assert training_macs(known) == 400 * 32 * 3 * 7.0


def test_drawings_show_every_case_the_line_and_what_is_left_out():
    """One drawing per known cost, with every label, and a caption that says what faint and hollow mean."""
    results = [case(label, 1.0 + i, latency=i) for i, label in enumerate(LABELS)]
    assert [d.name for d in pareto_drawings(results)] == ["pareto-latency", "pareto-macs", "pareto-memory"]
    drawings = {one.name: one for one in pareto_drawings(results, PARETO_COSTS)}
    words = re.findall(r">([^<>]+)</text>", drawings["pareto-latency"].svg)
    assert {"softmax", "linear", "dydila(mode=token)"} <= set(words)
    assert 'opacity="0.3' in drawings["pareto-macs"].svg  # dominated ones are faint
    assert "surely better" in drawings["pareto-macs"].caption
    assert "one seed each" in drawings["pareto-macs"].caption
    assert "No interval of training time" in drawings["pareto-training-time"].caption
    assert 'opacity="0.3' not in drawings["pareto-training-time"].svg
    assert pareto_drawings(results[:1]) == []
    many = [case(f"c{i}", 1.0 + i, macs=100 + (i > 0)) for i in range(41)]
    quality, cost = main_quality(many), COSTS["macs"]
    assert quality is not None
    front = pareto_front(pareto_points(many, cost, quality), "lower")
    with drawing():
        crowded = svg(draw_front(front, cost, quality), "crowded", "crowded")
    assert {"c0", "c40"} & set(re.findall(r">([^<>]+)</text>", crowded)) == {"c0"}
    assert "Of 41 configurations those on the line alone are labelled" in labels_caption(front)
    assert main_quality([make_result("a").model_copy(update={"measurements": []})]) is None


def test_the_caption_tells_bars_over_seeds_from_bars_over_images():
    """A configuration of one finished seed beside one of two."""
    mixed = [case("a", 1.0, macs=100), case("a", 1.1, macs=100, seed=1), case("b", 2.0, macs=200)]
    said = pareto_drawings(mixed, ["macs"])[0].caption
    assert "over seeds; of one seed over images" in said
    assert pareto_drawings([*mixed, case("b", 2.1, macs=200, seed=1)], ["macs"])[0].caption.endswith("seeds.")
