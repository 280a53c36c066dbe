"""Better at equal compute: losses along their curves, quality along a family, models of the same latency."""

from __future__ import annotations

import math

import pytest
from command_line import attnbench_here
from compare_cases import retimed, sides_of, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_cases import ENVIRONMENT, make_result, with_measurement

from attnbench.errors import UserInputError
from attnbench.report.compare import Wanted, compare
from attnbench.report.compare.budgets import curve_of
from attnbench.report.compare.equal import compare_equal
from attnbench.report.compare.tables import notes
from attnbench.results import Measurement

MINE = Wanted(cases=("mine",), against="linear")
BATCH = 128


def trained(label, *, steps=400, macs=1e6, level=1.0, seed=0, quality=8.0, seconds=20.0, latency_ms=None):
    """Return a training whose loss falls as level / step^0.5, with its counts, time and a distance."""
    result = make_result(label, 0, case_id=f"{label}-{steps}-{seed}", axes={"seed": str(seed)})
    case = {
        **result.case,
        "model": {**result.case["model"], "attention": {"name": label.partition("-")[0], "options": {}}},
        "seed": seed,
        "train": {**result.case["train"], "steps": steps, "batch_size": BATCH},
    }
    curve = [(float(step), level / step**0.5) for step in range(10, steps + 1, 10)]
    result = result.model_copy(update={
        "case": case,
        "label": f"{label} · seed={seed}",
        "curves": {"loss": curve, "held_out_loss": curve[-1:]},
    })  # fmt: skip
    found = with_measurement(
        result,
        Measurement(name="steps", values=[float(steps)]),
        Measurement(name="macs_full@8", unit="MAC", values=[macs], better="lower"),
        Measurement(name="train_time_s", unit="s", values=[seconds], better="lower"),
        Measurement(name="FD-digits", values=[quality], n=500, better="lower",
                    interval=(quality - 0.3, quality + 0.3)),
    )  # fmt: skip
    return found if latency_ms is None else retimed(found, 0, latency_ms / 2.4)


def equal(results, how, folder, wanted=MINE):
    """Compare within one run at an equal budget; return it and its rows by (quantity, budget)."""
    found = compare_equal(sides_of(results, folder=folder), wanted, how)
    return found, {(row.name, round(row.at)): row for row in found.rows}


def test_losses_meet_at_equal_multiply_adds(tmp_path):
    """Twice the multiply-adds a step: at equal compute half the steps are done, and the loss is read there.

    With loss level / step^0.5 at 200 steps of `mine` and 400 of `linear`; interpolated between points 10
    steps apart, whose curvature leaves less than (1/8) (log 21/20)^2 of the value.
    """
    _, rows = equal([trained("linear"), trained("mine", macs=2e6, level=0.8)], "macs", tmp_path)
    budget = 3 * 400 * BATCH * 1e6
    row = rows["loss", round(budget)]
    assert row.base == pytest.approx(1 / 400**0.5)
    assert row.value == pytest.approx(0.8 / 200**0.5, rel=math.log(21 / 20) ** 2 / 8)
    assert [share for (name, share) in rows if name == "loss"] == [budget / 4, budget / 2, budget]
    assert (row.verdict, row.why) == ("not tested", "one seed")


@pytest.mark.parametrize(("how", "at"), [("steps", 400), ("training-time", 20)])
def test_the_budget_is_what_is_asked_for(tmp_path, how, at):
    """By steps both are read at 400; by time at 20 s, where the slower one has done half of them."""
    results = [trained("linear"), trained("mine", level=0.8, seconds=40.0)]
    found, rows = equal(results, how, tmp_path)
    expected = 0.8 / (400 if how == "steps" else 200) ** 0.5
    assert rows["loss", at].value == pytest.approx(expected, rel=0.001)
    assert found.budget_unit == ("step" if how == "steps" else "s")


def test_over_seeds_there_is_a_verdict(tmp_path):
    """Three seeds, 20 % less loss at equal compute: better, with an interval, paired by seed."""
    noise = (1.0, 1.02, 0.97)
    results = [
        trained(label, seed=seed, level=level * noise[seed] * (1 + 0.003 * seed * (label == "mine")))
        for label, level in (("linear", 1.0), ("mine", 0.8))
        for seed in range(3)
    ]
    found, rows = equal(results, "macs", tmp_path)
    row = rows["loss", round(3 * 400 * BATCH * 1e6)]
    assert (row.verdict, row.seeds) == ("better", [0, 1, 2])
    assert row.ratio_interval[0] < row.ratio < row.ratio_interval[1] < 1  # losses compare by ratio
    assert any("over all cases that end at that budget, where two do" in note for note in notes(found))


def test_quality_needs_a_family_or_the_same_budget(tmp_path):
    """A distance at the end of a training is not read elsewhere: the reason names the steps that would do."""
    found, rows = equal([trained("linear"), trained("mine", macs=2e6)], "macs", tmp_path)
    assert not any(name == "FD-digits" for name, _ in rows)
    reason = next(reason for reason in found.left_out if reason.startswith("FD-digits"))
    assert "not within the measured range" in reason
    assert "linear ends level with train.steps 800" in reason


def test_quality_is_interpolated_along_a_family(tmp_path):
    """Between two trainings of `linear`, at the compute of `mine`: linear in the logarithm of the budget."""
    results = [
        trained("linear-200", steps=200, quality=10.0),
        trained("linear-800", steps=800, quality=6.0),
        trained("mine", steps=200, macs=2e6, quality=7.0),
    ]
    wanted = Wanted(cases=("mine",), against="linear-*")
    _, rows = equal(results, "macs", tmp_path, wanted)
    row = rows["FD-digits", round(3 * 400 * BATCH * 1e6)]
    assert (row.base, row.value) == (pytest.approx(8.0), 7.0)  # 400 is halfway from 200 to 800 by logarithms
    assert row.why == "one seed, interpolated"


def test_every_attention_is_a_family_of_its_own(tmp_path):
    """'*' is all but those it is held against; nothing is interpolated between two attentions.

    At the 400 steps of 1e6 that `one` spent, `linear` lies halfway between its ends, and so does it for
    `two`; were they one family, `one` at 400 and `two` at 800 would have a value in between.
    """
    results = [
        trained("linear-200", steps=200, quality=10.0),
        trained("linear-800", steps=800, quality=6.0),
        trained("one", steps=400, quality=7.0),
        trained("two", steps=400, quality=9.0),
    ]
    found, _ = equal(results, "macs", tmp_path, Wanted(cases=("*",), against="linear-*"))
    rows = {row.case: row for row in found.rows if row.name == "FD-digits"}
    assert {label: (row.base, row.value) for label, row in rows.items()} == {
        "one": (pytest.approx(8.0), 7.0),
        "two": (pytest.approx(8.0), 9.0),
    }


def test_trainings_that_end_level_are_compared_as_they_stand(tmp_path):
    """Half the steps of twice the multiply-adds are the same budget: a test by images, as they stand."""
    results = [trained("linear"), trained("mine", steps=200, macs=2e6, quality=7.0)]
    _, rows = equal(results, "macs", tmp_path)
    row = rows["FD-digits", round(3 * 400 * BATCH * 1e6)]
    assert (row.verdict, row.basis, row.difference) == ("better", "images", -1.0)


def test_trainings_that_end_level_share_their_variance(tmp_path):
    """The rows are those of a comparison of equal steps; another budget's end and a copy do not count."""
    noise = {"linear": (0.0, 0.3, -0.2), "mine": (0.1, 0.2, -0.3), "third": (-0.2, 0.4, 0.0)}
    level = [
        trained(label, seed=seed, quality=quality + drift)
        for label, quality in (("linear", 8.0), ("mine", 6.0), ("third", 7.0))
        for seed, drift in enumerate(noise[label])
    ]
    copies = [trained("copy", seed=seed, quality=7.0 + drift) for seed, drift in enumerate(noise["third"])]
    apart = [trained("apart", steps=500, seed=seed, quality=5.0 + 3 * seed) for seed in range(3)]
    wanted = Wanted(cases=("mine", "third", "copy", "apart"), against="linear", only=("FD-digits",))
    (tmp_path / "all").mkdir()
    (tmp_path / "level").mkdir()
    found = compare_equal(sides_of([*level, *copies, *apart], folder=tmp_path / "all"), wanted, "macs")
    plain = compare(
        sides_of(level, folder=tmp_path / "level"),
        Wanted(cases=("mine", "third"), against="linear", only=("FD-digits",)),
    )
    intervals = {row.case: row.ratio_interval for row in found.rows}
    assert intervals == {row.case: row.ratio_interval for row in plain.rows} | {"copy": intervals["third"]}


def test_models_of_the_same_latency(tmp_path):
    """At the latency of `mine`, between two sizes of `linear`."""
    results = [
        trained("linear-s", latency_ms=2.0, quality=10.0),
        trained("linear-l", latency_ms=8.0, quality=6.0),
        trained("mine", latency_ms=4.0, quality=7.0),
    ]
    wanted = Wanted(cases=("mine",), against="linear-*")
    found, rows = equal(results, "latency", tmp_path, wanted)
    row = next(row for (name, _), row in rows.items() if name == "FD-digits")
    assert row.base == pytest.approx(8.0, abs=0.1)  # rounds of 2 % each move the medians by about 1 %
    assert found.budget_unit == "ms"
    alone = equal(
        [results[0], results[2]], "latency", tmp_path / "b", Wanted(cases=("mine",), against="linear-s")
    )
    assert alone[0].rows == []
    assert any("add cases of other sizes" in reason for reason in alone[0].left_out)


def test_a_time_on_another_machine_is_no_budget(tmp_path):
    """Equal time on two machines is refused; equal multiply-adds are not."""
    other = trained("mine").model_copy(
        update={"environment": ENVIRONMENT.model_copy(update={"cpu": "Other CPU"})}
    )
    sides = sides_of([trained("linear")], [other], folder=tmp_path)
    with pytest.raises(UserInputError, match="cpu: Some CPU"):
        compare_equal(sides, MINE, "training-time")
    assert compare_equal(sides, MINE, "macs").rows
    forced = compare_equal(sides, Wanted(cases=("mine",), against="linear", force=True), "training-time")
    assert any(note.startswith("a: cpu") for note in notes(forced))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.floats(1, 1e20), st.floats(-1e3, 1e3)), min_size=1, max_size=5), st.floats(0, 1))
def test_a_curve_stays_between_its_points(points, share):
    """Whatever was measured, an interpolated value lies between the lowest and the highest of it."""
    curve = curve_of(points)
    low, high = curve.range
    value = curve.at(low * (high / low) ** share)
    rounding = 1e-9 * max(abs(v) for v in curve.values)
    assert min(curve.values) - rounding <= value <= max(curve.values) + rounding


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--equal", "macs"], "--equal compares --case LABEL with --against LABEL; cases of"),
        (["--equal", "flops", "--case", "mine", "--against", "linear"], "--equal takes macs, latency, "),
        (["--equal", "macs", "--case", "mien", "--against", "linear"], "(did you mean 'mine'?)"),
        (["--equal", "macs", "--case", "lin*", "--against", "linear"], "both name 'linear'; name different"),
        (["--equal", "macs", "--case", "bare", "--against", "linear"],
         "has no full multiply-adds of the model at its data's resolution, batch size and steps; it can be "
         "compared by: latency, steps, training-time"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told(here, words, said):
    """A wrong name or a case without a budget is an error that says what is there."""
    bare = trained("bare")
    bare = bare.model_copy(
        update={"measurements": [m for m in bare.measurements if not m.name.startswith("macs")]}
    )
    write_run(here / "runs" / "a", [trained("linear"), trained("mine"), bare])
    done = attnbench_here("compare", "a", *words, cwd=here)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_the_question_in_one_command(here):
    """`compare RUN --case mine --against linear --equal macs` prints the budgets and both losses."""
    write_run(here / "runs" / "a", [trained("linear"), trained("mine", macs=2e6, level=0.8)])
    done = attnbench_here(
        "compare", "a", "--case", "mine", "--against", "linear", "--equal", "macs", cwd=here
    )
    assert done.returncode == 0, done.stderr
    assert "GMAC" in done.stdout
    assert "Spent: 3 x full MACs x batch size x steps." in done.stdout


def test_cases_without_a_seed_in_common_are_told_so(tmp_path):
    """Both end at the same budget: it is not the range that keeps them apart."""
    found, rows = equal([trained("linear"), trained("mine", seed=1)], "macs", tmp_path)
    assert not rows
    assert any("no seed in common: 1 in --case, 0 in --against" in said for said in found.left_out)
    assert not any("measured range" in said for said in found.left_out)
