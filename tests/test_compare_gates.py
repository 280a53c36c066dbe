"""Conditions of --fail-on: their grammar, what trips them, and the exit codes a CI sees."""

from __future__ import annotations

import pytest
from command_line import attnbench_here
from compare_cases import retimed, seeded, sides_of, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_cases import make_result, make_suite, with_measurement, without_rounds

from attnbench.errors import UserInputError
from attnbench.report.compare import Wanted, compare
from attnbench.report.compare.gates import Gate, parse_gates
from attnbench.report.compare.tables import gate_lines
from attnbench.results import Measurement

NAMES = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="@-_:."), min_size=1)
AMOUNTS = st.integers(0, 10**6).map(lambda thousandths: thousandths / 1000)
GATES = st.builds(Gate, name=NAMES, amount=AMOUNTS, relative=st.just(False)) | st.builds(
    Gate, name=NAMES, amount=AMOUNTS.map(lambda percent: percent / 100), relative=st.just(True)
)

FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome(gates, *runs, folder, **wanted):
    """Return what becomes of one condition."""
    found = compare(sides_of(*runs, folder=folder), Wanted(gates=tuple(parse_gates(gates)), **wanted))
    return found, found.gates[0]


@FEW
@given(st.lists(GATES, min_size=1, max_size=4))
def test_what_is_written_is_read_back(gates):
    """Any list of conditions reads back as it was written."""
    read = parse_gates(",".join(map(str, gates)))
    assert [(gate.name, gate.relative) for gate in read] == [(gate.name, gate.relative) for gate in gates]
    assert [gate.amount for gate in read] == pytest.approx([gate.amount for gate in gates])


@FEW
@given(st.text("a>%5., <=@-\n", max_size=12))
def test_anything_else_is_an_error_in_words(text):
    """No text makes the parser fail in another way than by saying what it takes and what it got."""
    try:
        gates = parse_gates(text)
    except UserInputError as error:
        said = str(error)
    else:
        said = ""
        assert all(gate.amount >= 0 and gate.name for gate in gates)
    assert not said or ("--fail-on takes QUANTITY>AMOUNT" in said and repr(text) in said)


@pytest.mark.parametrize("text", ["", "latency", "latency>", ">5", "latency<5", "latency>-5", "latency>5,",
                                  "latency>5%%", "latency>5 ms", "latency>inf", "latency>=5"])  # fmt: skip
def test_wrong_conditions_are_refused(text):
    """A sign, a unit, another comparison or an empty part is no condition."""
    with pytest.raises(UserInputError, match="--fail-on takes"):
        parse_gates(text)


@pytest.mark.parametrize(
    ("gate", "trips"),
    [
        ("latency>5%", True),
        ("latency@8>5%", True),
        ("latency_ms@8>0.05", True),
        ("latency>45%", False),
        ("memory>1%", False),
        ("macs>0", False),
    ],
)
def test_a_gate_trips_where_the_near_end_lies_beyond(tmp_path, gate, trips):
    """40 % slower trips 5 %, by every name of the latency, and not 45 %; what is the same trips nothing."""
    suite = make_suite()[:2]
    later = [suite[0], retimed(suite[1], 1, 1.4)]
    found, judged = outcome(gate, suite, later, folder=tmp_path)
    assert bool(judged.tripped) == trips
    assert found.exit_code == trips
    assert all("linear" in said for said in judged.tripped)


def test_faster_and_better_trip_nothing(tmp_path):
    """The direction is the quantity's own: half the time and a higher accuracy are no regressions."""
    suite = make_suite()[:1]
    accuracy = Measurement(name="class_accuracy", values=[0.999], n=500, better="higher")
    better = [with_measurement(retimed(suite[0], 0, 0.5), accuracy)]
    for gate in ("latency>0", "accuracy>0"):
        assert outcome(gate, suite, better, folder=tmp_path / gate)[0].exit_code == 0


def test_a_higher_is_better_quantity_trips_by_falling(tmp_path):
    """Accuracy that falls by 20 points trips 0.1, not 0.3."""
    suite = make_suite()[:1]
    worse = [with_measurement(suite[0], Measurement(name="class_accuracy", values=[0.78], n=500))]
    assert outcome("class_accuracy>0.1", suite, worse, folder=tmp_path / "a")[1].tripped
    assert not outcome("class_accuracy>0.3", suite, worse, folder=tmp_path / "b")[1].tripped
    assert outcome("accuracy>10%", suite, worse, folder=tmp_path / "c")[1].tripped


def test_a_family_is_every_metric_of_its_kind(tmp_path):
    """FID names Frechet distances on any network; over seeds the near end decides."""
    shifted = seeded(shift=0.5, draw=1)
    assert outcome("FID>0.2", seeded(), shifted, folder=tmp_path / "a")[1].tripped
    assert outcome("FD-digits>2%", seeded(), shifted, folder=tmp_path / "b")[1].tripped
    assert not outcome("FD>0.5", seeded(), shifted, folder=tmp_path / "c")[1].tripped


def test_what_was_measured_once_is_taken_at_its_value(tmp_path):
    """A training that took a fifth longer trips 10 %, and the line says that it was measured once."""
    a = make_result("linear", 0)
    b = with_measurement(a, Measurement(name="train_time_s", unit="s", values=[26.4], better="lower"))
    _, judged = outcome("train_time>10%", [a], [b], folder=tmp_path)
    assert judged.tripped == ["linear: Training: 22.00 to 26.40, measured once"]


def test_a_gate_that_can_judge_nothing_fails(tmp_path):
    """Times without rounds decide nothing: the gate fails instead of passing unseen."""
    suite = make_suite()[:1]
    old = [without_rounds(retimed(suite[0], 0))]
    found, judged = outcome("latency>5%", suite, old, folder=tmp_path)
    assert (judged.tripped, judged.held, found.exit_code) == ([], 0, 1)
    assert gate_lines(found) == [
        "gate latency>5%: failed: nothing it is about could be judged, 1 not decided",
        "  not decided: softmax: Latency at 8 px: without rounds",
    ]


def test_a_share_of_a_distance_below_zero_is_not_decided(tmp_path):
    """A kernel distance may be negative, and 5 % of it mean nothing."""
    values = (-0.001, 0.004)
    a, b = ([with_measurement(make_result("x"), _kernel(value))] for value in values)
    _, judged = outcome("KID>5%", a, b, folder=tmp_path)
    assert judged.undecided == ["x: KD-digits: no share of -0.001; give the amount without %"]


def _kernel(value):
    return Measurement(name="KD-digits", values=[value], n=500, interval=(value - 0.001, value + 0.001))


@pytest.mark.parametrize(
    ("gates", "code", "said"),
    [
        ("latency>5%,macs>0", 0, "gate latency>5%: held by 2"),
        ("FIDS>1", 2, "--fail-on: 'FIDS' is no quantity that these runs have (did you mean 'fid'?)"),
        ("energy>1", 2, "--fail-on: 'energy' is no quantity that these runs have"),
        ("latency=1", 2, "--fail-on takes QUANTITY>AMOUNT"),
    ],
)
def test_exit_codes(here, gates, code, said):
    """0 where conditions hold, 2 where one is about nothing: a gate on nothing would always pass."""
    for name in "ab":
        write_run(here / "runs" / name, make_suite()[:2])
    done = attnbench_here("compare", "a", "b", "--fail-on", gates, cwd=here)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


def test_a_case_that_failed_or_diverged_trips_its_gate(tmp_path):
    """The third case has no distance: NaN or a failure is worse than any, without scores it is unknown."""
    runs = seeded()

    def changed(distance=None, **update):
        return [
            r
            if not r.label.startswith("linear")
            else with_measurement(r, Measurement(name="FD-digits", values=distance or [], n=500)).model_copy(
                update=update
            )
            for r in runs
        ]

    for name, after, said in (
        ("nan", changed([float("nan")]), "linear: FD-digits: not finite in B"),
        ("failed", changed(status="failed", reason="NaN in step 7"), "linear: FD-digits: failed in B"),
    ):
        found, judged = outcome("FID>1", runs, after, folder=tmp_path / name)
        assert (judged.tripped, judged.held, found.exit_code) == ([said], 2, 1)
    found, judged = outcome("FID>1", runs, changed(), folder=tmp_path / "unscored")
    assert (judged.tripped, judged.undecided) == ([], ["linear: FD-digits: not measured in B"])
    assert found.exit_code == 0
