"""Exponents and crossovers of rows whose growth is known in closed form."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from profile_cases import SIDES, make_row, noisy_rows

from attnbench.profiling import resampling
from attnbench.profiling.crossovers import Crossover, crossovers
from attnbench.profiling.resampling import TAILS, median_draws
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import scalings
from attnbench.profiling.statistics import median_interval


def exact(model, time_ms, sides=SIDES, **changes):
    return [make_row(model, side, [time_ms((side // 16) ** 2)] * 6, **changes) for side in sides]


def time_of(found, **wanted):
    wanted = {"quantity": "time"} | wanted
    (one,) = [f for f in found if all(getattr(f, key) == value for key, value in wanted.items())]
    return one


def crossing(rows, **wanted) -> Crossover:
    return time_of(crossovers(rows, ["softmax"]), **wanted)


QUADRATIC, LINEAR = (lambda n: 1e-4 * n**2), (lambda n: 0.1 * n)  # equal at n = 1000


def test_powers_have_their_exponents():
    """t = a n^2 fits 2, t = b n fits 1; a sum of both lies between, and steeper at its end."""
    rows = exact("square", QUADRATIC) + exact("line", LINEAR)
    rows += exact("both", lambda n: QUADRATIC(n) + LINEAR(n))
    found = {f.model: f for f in scalings(rows)}
    assert found["square"].exponent == pytest.approx(2)
    assert found["square"].interval == pytest.approx((2, 2))
    assert (found["line"].exponent, found["line"].last_exponent) == pytest.approx((1, 1))
    last = math.log((1e-4 * 16384**2 + 0.1 * 16384) / (1e-4 * 4096**2 + 0.1 * 4096), 4)
    assert found["both"].last_exponent == pytest.approx(last)
    assert 1 < found["both"].exponent < last < 2


def test_memory_grows_too_without_an_interval():
    """Memory is read once: it has an exponent and no interval; tensors' sizes go before the resident set."""
    rows = [
        make_row("m", side, extra_memory_mib=7.0 + side, live_memory_mib=(side / 16) ** 3) for side in SIDES
    ]
    (found,) = scalings(rows)
    assert (found.quantity, found.measured_as, found.interval) == ("memory", "live_memory_mib", None)
    assert found.exponent == pytest.approx(1.5)
    planned = [make_row("m", s, weights_mib=5.0, planned_memory_mib=5.0 + s**2) for s in SIDES]
    assert scalings(planned)[0].exponent == pytest.approx(1)  # the weights do not grow


def test_rows_that_cannot_be_used_are_left_out_and_said():
    """Failed rows are in no fit, disturbed ones in none of time; each is named with its reason."""
    bent = lambda n: 1e9  # noqa: E731
    rows = exact("m", LINEAR, SIDES[:2], live_memory_mib=3.0)
    rows += exact("m", bent, SIDES[2:3], disturbed="others ran", live_memory_mib=3.0)
    rows += [make_row("m", 2048, status="skipped", reason="out of memory")]
    time, memory = scalings(rows)
    assert (time.exponent, time.tokens) == (pytest.approx(1), [256, 1024])
    assert time.left_out == [
        "m at 1024 px: disturbed: others ran",
        "m at 2048 px: skipped: out of memory",
    ]
    assert (memory.exponent, memory.tokens) == (pytest.approx(0), [256, 1024, 4096])
    (alone,) = scalings(exact("m", LINEAR, SIDES[:1]))
    assert (alone.exponent, alone.interval, alone.last_exponent) == (None, None, None)


def test_too_few_rounds_give_no_interval():
    """Five rounds have an exponent and no 95 % interval, as their latencies have none."""
    rows = [make_row(m, s, [s**p] * 5) for m, p in (("m", 1), ("softmax", 2)) for s in SIDES]
    assert scalings(rows)[0].interval is None
    assert crossing(rows).resolution_interval is None


def test_settings_are_not_mixed():
    """A batch of 8 is fitted by itself and meets the baseline of its own batch only."""
    rows = exact("m", LINEAR) + exact("m", QUADRATIC, batch_size=8) + exact("softmax", QUADRATIC)
    assert [f.exponent for f in scalings(rows)] == pytest.approx([1, 2, 2])
    (found,) = crossovers(rows, ["softmax"])
    assert "batch 1" in found.setting


def test_crossover_of_powers_is_exact():
    """1e-4 n^2 and 0.1 n are equal at 1000 tokens, which is a side of 16 sqrt(1000) px."""
    found = crossing(exact("m", LINEAR) + exact("softmax", QUADRATIC))
    assert found.verdict == "from"
    assert found.tokens == pytest.approx(1000)
    assert found.resolution == pytest.approx(16 * math.sqrt(1000))
    assert found.tokens_interval == pytest.approx((1000, 1000))
    assert found.ratios == pytest.approx([1000 / n for n in (256, 1024, 4096, 16384)])
    assert found.measured_range == (256, 2048)
    assert Crossover.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("sides", "verdict"), [(SIDES[:1], "never"), (SIDES[2:], "always"), (SIDES[2:3], "always")]
)
def test_outside_the_measured_range(sides, verdict):
    """Where no measured size lies on the other side there is no crossover, and JSON stays valid."""
    found = crossing(exact("m", LINEAR, sides) + exact("softmax", QUADRATIC, sides))
    assert (found.verdict, found.tokens, found.tokens_interval) == (verdict, None, (None, None))
    assert "Infinity" not in json.dumps(found.model_dump(mode="json"))


def test_several_crossings_tell_the_last():
    """A ratio of 0.5, 2, 1.5, 0.75 crosses twice; from the second on the model stays faster."""
    ratios = dict(zip(SIDES, (0.5, 2.0, 1.5, 0.75), strict=True))
    rows = [make_row("m", s, [r] * 6) for s, r in ratios.items()] + exact("softmax", lambda n: 1.0)
    found = crossing(rows)
    assert found.verdict == "from"
    assert len(found.crossings) == 2
    assert found.resolution == pytest.approx(found.crossings[1])
    # halfway from log 1.5 to log 0.75, in log 2 of the side: log(1.5) / log(2)
    assert found.resolution == pytest.approx(1024 * 2 ** (math.log(1.5) / math.log(2)))
    assert found.crossings[0] == pytest.approx(256 * 2**0.5)
    worse = [row for row in rows if row.resolution < 2048]
    assert crossing(worse).verdict == "never"  # faster at 256 px, but not to the end


def test_equal_models_are_not_told_apart():
    """Pure noise around one curve: the interval is the whole range, and the verdict says so."""
    rng = np.random.default_rng(0)
    rows = noisy_rows("m", LINEAR, rng) + noisy_rows("softmax", LINEAR, rng)
    found = crossing(rows)
    assert (found.verdict, found.resolution_interval) == ("unclear", (None, None))


def test_memory_crosses_by_itself():
    """Memory has a crossover of its own, of the column that both models have."""
    rows = [make_row("m", s, extra_memory_mib=32.0 * s, live_memory_mib=1.0) for s in SIDES]
    rows += [make_row("softmax", s, extra_memory_mib=s**2 / 32) for s in SIDES]
    found = crossing(rows, quantity="memory")
    assert (found.measured_as, found.resolution) == ("extra_memory_mib", pytest.approx(1024))
    assert found.resolution_interval is None


def test_each_size_meets_its_own_baseline():
    """Model sizes pair up; a model of no size meets the first baseline; baselines meet nobody."""
    rows = [
        row
        for name, size in (("a-s", "S"), ("a-b", "B"), ("dit-s", "S"), ("dit-b", "B"), ("mine", ""))
        for row in exact(name, LINEAR, size=size)
    ]
    met = {f.model: f.baseline for f in crossovers(rows, ["dit-s", "dit-b"])}
    assert met == {"a-s": "dit-s", "a-b": "dit-b", "mine": "dit-s"}
    assert crossovers(rows, ["elsewhere"]) == []


def test_pairs_take_the_machines_moods_out():
    """Moods ten times the noise, shared by a session's rounds, widen no interval of a pair."""
    rng = np.random.default_rng(1)
    moods = rng.normal(0, 0.3, (4, 8))

    def both(**session) -> list[ProfileRow]:
        mine = noisy_rows("m", LINEAR, rng, rounds=8, moods=moods, **session)
        return mine + noisy_rows("softmax", QUADRATIC, rng, rounds=8, moods=moods)

    low, high = crossing(both()).tokens_interval
    apart_low, apart_high = crossing(both(session="two")).tokens_interval
    assert low < high
    # a crossing moves by tokens x error of the log ratio: 8 rounds of noise 0.03 sqrt 2 against moods of 0.3;
    # half of 10 leaves room for the chance of 8 rounds
    assert math.log(apart_high / apart_low) > 5 * math.log(high / low)


def test_rounds_disturbed_on_either_side_pair_with_nothing():
    """Where six pairs are clean the others say nothing, as in the rows' own latencies."""
    busy = [0.0] * 7 + [0.5] * 7
    rows = []
    for model, spoilt in (("m", 40.0), ("softmax", 1.0)):
        for side in SIDES[:2]:
            clean = make_row(model, side, [2.0 if model == "m" else 4.0] * 7 + [spoilt] * 7)
            rounds = [
                r.model_copy(update={"waited_share": [w] * len(r.latency_ms)})
                for r, w in zip(clean.rounds, busy, strict=True)
            ]
            rows.append(clean.model_copy(update={"rounds": rounds}))
    found = crossing(rows)
    assert (found.ratios, found.verdict) == (pytest.approx([0.5, 0.5]), "always")
    assert found.resolution_interval == (None, None)


def test_draws_are_the_sign_tests():
    """How many values lie below a draw is Bin(6, 1/2), and 95 % lie within the sign test's interval."""
    rng = np.random.default_rng(2)
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    draws = median_draws(values, rng)
    shares = np.histogram(draws, bins=[1, 2, 3, 4, 5, 6.01])[0] / len(draws)
    # gap k holds C(6, k) / 64, the outermost a 64th more each; 4 sd of a share of 4000 draws are below 0.03
    assert shares == pytest.approx([7 / 64, 15 / 64, 20 / 64, 15 / 64, 7 / 64], abs=0.03)
    assert (draws.min(), draws.max()) == (1, 6)
    low, high = np.quantile(draws, TAILS)
    widest = median_interval(values)
    assert widest.low < low < 2 < 5 < high < widest.high
    assert median_draws(values[:5], rng) is None


@pytest.mark.parametrize("rounds", [6, 12])
def test_intervals_hold_the_truth(monkeypatch, rounds):
    """Of 200 sessions with known growth, about 97 % of the intervals hold exponent and crossover."""
    monkeypatch.setattr(resampling, "DRAWS", 400)
    rng = np.random.default_rng(rounds)
    hits = {"exponent": 0, "tokens": 0}
    for _ in range(200):
        sides, moods = SIDES[:3], rng.normal(0, 0.05, (3, rounds))
        rows = noisy_rows("m", LINEAR, rng, sides=sides, rounds=rounds, moods=moods)
        rows += noisy_rows("softmax", QUADRATIC, rng, sides=sides, rounds=rounds, moods=moods)
        fitted, crossed = time_of(scalings(rows), model="m"), crossing(rows)
        hits["exponent"] += fitted.interval[0] <= 1 <= fitted.interval[1]
        low, high = (math.inf if end is None else end for end in crossed.tokens_interval)
        hits["tokens"] += low <= 1000 <= high
        # no interval is wider than by the extremes of every size: no safety by saying nothing
        assert high - low < 0.3 * 1000
    # nominal 95 %: of 200, fewer than 178 has a chance of 1e-3 each, by Bin(200, 0.95)
    assert min(hits.values()) >= 178, hits


def test_needs_no_torch():
    """Reports use both modules, and reports import no torch."""
    code = "import sys, attnbench.profiling.crossovers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
