"""Runs held against each other: matching, tests, verdicts, refusals, and what the terminal shows of it."""

from __future__ import annotations

import json
import random
import re
import runpy
import statistics
from pathlib import Path

import jsonschema
import pytest
from command_line import attnbench_here
from compare_cases import LABELS, retimed, rows_of, seeded, sides_of, write_run
from report_cases import (
    ENVIRONMENT,
    HOSTILE,
    disturbed_rounds,
    make_result,
    make_suite,
    profile_row,
    with_measurement,
    without_rounds,
)

from attnbench.commands.schema import schema
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.profiling.profile import ProfileReport
from attnbench.report.compare import Wanted, compare
from attnbench.report.compare.rounds import compare_rounds
from attnbench.report.compare.tables import notes
from attnbench.results import Measurement
from attnbench.specs import ProfileSpec

REPORTS = Path(__file__).parent.parent / "reports"
QUICK = next((REPORTS / "quick").glob("*/results.jsonl"))
SIMULATION = REPORTS / "compare" / "measure.py"
LATENCY_AT_8 = "latency_ms@8"


def changed(results, **update):
    """Return results with other fields of their environment."""
    where = ENVIRONMENT.model_copy(update=update)
    return [result.model_copy(update={"environment": where}) for result in results]


def with_setting(results, stage, **update):
    """Return results with other settings of one stage."""
    return [
        r.model_copy(update={"case": {**r.case, stage: {**r.case.get(stage, {}), **update}}}) for r in results
    ]


def setting(stage, **update):
    """Return a function that changes settings of one stage."""
    return lambda results: with_setting(results, stage, **update)


def test_a_run_is_the_same_as_itself():
    """Every quantity of the shipped run, held against itself, is the same: exit 0, and one sentence."""
    done = attnbench_here("compare", QUICK, QUICK.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "96 compared: 96 same" in done.stdout
    assert "The same in every case: FD-digits-cnn" in done.stdout


def test_times_of_the_same_code_in_another_session_are_not_distinguishable(tmp_path):
    """Other rounds of the same level are no difference, whatever their own noise says."""
    suite = make_suite()[:5]
    later = [retimed(result, i) for i, result in enumerate(suite)]
    found = compare(sides_of(suite, later, folder=tmp_path), Wanted())
    assert {row.verdict for row in rows_of(found, LATENCY_AT_8).values()} == {"not distinguishable"}


def test_a_tenth_slower_is_found_and_nothing_else(tmp_path):
    """Of five cases timed again one is 10 % slower: said to be on a machine whose sessions agree."""
    suite = make_suite()[:5]
    later = [retimed(result, i, 1.1 if i == 1 else 1.0) for i, result in enumerate(suite)]
    shared = compare(sides_of(suite, later, folder=tmp_path / "shared"), Wanted(only=("latency",)))
    assert {row.verdict for row in shared.rows} == {"not distinguishable"}
    assert rows_of(shared, LATENCY_AT_8)["linear"].why == "less than 20 %"
    found = compare(sides_of(suite, later, folder=tmp_path), Wanted(session_margin=0.06))
    rows = rows_of(found, LATENCY_AT_8)
    assert [case for case, row in rows.items() if row.verdict != "not distinguishable"] == ["linear"]
    row = rows["linear"]
    assert (row.verdict, row.basis) == ("slower", "rounds of two sessions")
    # rounds scatter by 2.1 %, nine to thirteen of them in each: four deviations of the ratio are 4 %
    assert row.ratio == pytest.approx(1.1, abs=0.04)
    assert row.ratio_interval[0] < row.ratio < row.ratio_interval[1]
    assert {row.verdict for row in found.rows if row.name != LATENCY_AT_8} == {"same"}


def test_rounds_of_one_session_are_pairs():
    """Within a session the machine's drift cancels: 8 % between two cases have an interval far narrower.

    Rounds drift by 2 % and cases by 0.5 % of their own and 1 % of a sample over the root of twenty: paired,
    the deviation of a ratio is under 1 %, unpaired 3 %.
    """
    ours, theirs = (_latency(i, level=1 + 0.08 * i) for i in range(2))
    paired = compare_rounds(ours, theirs)
    apart = compare_rounds(ours.model_copy(update={"session": "other"}), theirs)
    assert (paired.basis, apart.basis) == ("rounds side by side", "rounds of two sessions")
    assert _width(paired) < _width(apart) / 2
    assert paired.p < apart.p


def _latency(index, level):
    """Return a latency whose rounds share the drift of the made-up machine."""
    measured = make_result("x", index).measurement(LATENCY_AT_8)
    scale = level / (2.4 + 0.35 * index)
    return measured.model_copy(update={
        "rounds": [[scale * t for t in r] for r in measured.rounds],
        "values": [scale * v for v in measured.values],
    })  # fmt: skip


def _width(test):
    return test.interval[1] - test.interval[0]


def test_no_verdict_on_disturbed_times_nor_without_rounds(tmp_path):
    """A disturbed row, an earlier version's times and too few rounds are shown, with the reason."""
    suite = make_suite()[:3]
    rounds = profile_row(0, 8).rounds
    waited = disturbed_rounds(rounds, range(len(rounds)))
    later = [
        retimed(suite[0], 0, rounds=waited, disturbed="waited for a core"),
        without_rounds(retimed(suite[1], 1)),
        retimed(suite[2], 2, rounds=rounds[:4]),
    ]
    rows = rows_of(compare(sides_of(suite, later, folder=tmp_path), Wanted()), LATENCY_AT_8).values()
    assert {row.verdict for row in rows} == {"not tested"}
    assert [row.why for row in rows] == ["disturbed", "without rounds", "too few rounds"]


def test_times_within_the_margin_of_two_processes_are_no_difference(tmp_path):
    """4 % slower in every round is sure, and still what two processes of one code may differ by."""
    suite = make_suite()[:1]
    slower = [_scaled(suite[0], 1.04)]
    for margin, verdict in ((0.06, "not distinguishable"), (0.0, "slower")):
        found = compare(sides_of(suite, slower, folder=tmp_path / str(margin)), Wanted(time_margin=margin))
        row = rows_of(found, LATENCY_AT_8)["softmax"]
        assert row.p < 1e-9
        assert row.verdict == verdict


def _scaled(result, factor):
    """Return a result with each round of its latency scaled, and some noise of a thousandth."""
    measured, rng = result.measurement(LATENCY_AT_8), random.Random(0)
    rounds = [[factor * rng.gauss(1, 0.001) * t for t in r] for r in measured.rounds]
    values = [statistics.median(r) for r in rounds]
    return with_measurement(result, measured.model_copy(update={"rounds": rounds, "values": values}))


def test_a_planted_change_of_quality_is_found_over_seeds(tmp_path):
    """Three seeds, a rest of 0.05 and a shift of 0.5 in one case: that one is worse, the others are not told.

    Paired by seed the deviation of a difference of means is 0.05 (2 / 3)^0.5 = 0.04, a twelfth of the shift;
    the seeds' own spread of 0.5 cancels.
    """
    found = compare(sides_of(seeded(), seeded(shift=0.5, draw=1), folder=tmp_path), Wanted(only=("quality",)))
    rows = rows_of(found, "FD-digits")
    assert {case: row.verdict for case, row in rows.items()} == {
        "softmax": "not distinguishable", "linear": "worse", "focused": "not distinguishable",
    }  # fmt: skip
    assert rows["linear"].seeds == [0, 1, 2]
    assert rows["linear"].basis == "seeds"
    assert rows["linear"].value - rows["linear"].base == pytest.approx(rows["linear"].difference)


def test_one_seed_is_about_two_trainings(tmp_path):
    """A difference by images alone is called one of two trainings, and the reader is told what that means."""
    a, b = ([with_measurement(make_result("linear", 0), _distance(value))] for value in (8.0, 9.0))
    found = compare(sides_of(a, b, folder=tmp_path), Wanted(only=("quality",)))
    row = rows_of(found, "FD-digits")["linear"]
    assert (row.verdict, row.basis, row.why) == ("worse", "images", "two trainings")
    # the interval of a difference of independent values: 1 +- (0.3^2 + 0.3^2)^0.5
    assert row.difference_interval == pytest.approx((1 - 0.3 * 2**0.5, 1 + 0.3 * 2**0.5))
    assert any("another seed may turn it round" in note for note in notes(found))


def _distance(value, n=500, half=0.3):
    return Measurement(
        name="FD-digits", values=[value], n=n, better="lower", interval=(value - half, value + half)
    )


def test_one_value_each_gets_no_verdict_over_methods(tmp_path):
    """With one seed a loss, a training time and a peak memory are shown and not judged."""
    a, b = [make_result("linear", 0)], [make_result("linear", 1)]
    found = compare(sides_of(a, b, folder=tmp_path), Wanted(only=("final_loss", "train_time_s")))
    assert {(row.verdict, row.why) for row in found.rows} == {("not tested", "one value each")}


def test_what_is_counted_is_exact(tmp_path):
    """One multiply-add more is more; nothing is tested."""
    a = [make_result("linear", 0)]
    more = a[0].measurement("macs_full@8")
    b = [with_measurement(a[0], more.model_copy(update={"values": [more.value + 1]}))]
    row = rows_of(compare(sides_of(a, b, folder=tmp_path), Wanted()), "macs_full@8")["linear"]
    assert (row.verdict, row.basis, row.p, row.difference) == ("more", "counted", None, 1)


def test_at_most_one_table_in_twenty_calls_something_where_nothing_differs():
    """Of 200 tables of 18 comparisons without a difference 5 % call one; unadjusted 1 - 0.95^18 = 60 % would.

    21 is what a binomial of 200 draws at 5 % exceeds once in a thousand.
    """
    found = runpy.run_path(str(SIMULATION))["count"](200)
    assert found.adjusted <= 21
    assert found.alone > 80


@pytest.mark.parametrize(
    ("change", "said", "alike"),
    [
        (lambda rs: changed(rs, cpu="Other CPU"), "cpu: Some CPU @ 2.50GHz in A, Other CPU in B", "quality"),
        (lambda rs: changed(rs, threads=8), "threads: 2 in A, 8 in B", "quality"),
        (lambda rs: changed(rs, device="Some GPU"), "device: cpu in A, Some GPU in B", "quality"),
        (setting("data", name="photos"), "data.name: digits in A, photos in B", "latency"),
        (setting("sample", guidance_scale=4.0), "sample.guidance_scale: 1.0 in A", "loss"),
        (setting("sample", sampler="heun"), "sample.sampler: euler in A", "latency"),
        (setting("evaluate", extractor="dinov2"), "evaluate.extractor: none in A", "loss"),
        (setting("train", steps=800), "train.steps: 400 in A, 800 in B", "latency"),
        (setting("profile", batch_size=8), "profile.batch_size: none in A, 8 in B", "loss"),
        (lambda rs: [with_measurement(r, _distance(8, n=900)) for r in rs], "n of FD-digits: 500", "loss"),
    ],
)  # fmt: skip
def test_what_is_not_alike_is_refused(tmp_path, change, said, alike):
    """Another machine, data, n, extractor or sampler is an error that names it and what can be compared."""
    suite = make_suite()[:2]
    sides = sides_of(suite, change(suite), folder=tmp_path)
    with pytest.raises(UserInputError, match=re.escape(said)) as refused:
        compare(sides, Wanted())
    step = str(refused.value).rpartition("\n")[2]
    only = re.search(r"--only (\S+)", step)[1].split(",")
    assert alike in only
    assert compare(sides, Wanted(only=tuple(only))).rows
    forced = compare(sides, Wanted(force=True))
    marked = [row for row in forced.rows if row.unlike]
    assert marked
    assert any(note.startswith("a: ") and said in note for note in notes(forced))


def test_data_in_another_folder_is_known_by_its_floors(tmp_path):
    """The same images elsewhere score the same as real ones; others do not, and are refused."""
    suite = with_setting(make_suite()[:2], "data", path="/here")
    moved = with_setting(suite, "data", path="/there")
    assert compare(sides_of(suite, moved, folder=tmp_path / "same"), Wanted()).rows
    floor = Measurement(name="floor:FD-digits", values=[3.0], n=360)
    others = [with_measurement(result, floor) for result in moved]
    with pytest.raises(UserInputError, match=r"data\.path: /here in A, /there in B"):
        compare(sides_of(suite, others, folder=tmp_path / "other"), Wanted())


def test_cases_match_by_settings_then_by_label(tmp_path):
    """A renamed case is found by its settings; a changed one by its label, and what changed is told."""
    suite = make_suite()[:3]
    renamed = suite[0].model_copy(update={"label": "dense"})
    retrained = with_setting([suite[1]], "train", lr=1e-3)[0]
    found = compare(sides_of(suite, [renamed, retrained], folder=tmp_path), Wanted())
    assert {(row.against, row.case) for row in found.rows} == {("softmax", "dense"), ("linear", "linear")}
    assert "train.lr: 0.002 in A, 0.001 in B (linear)" in found.notes
    assert found.left_out == ["in A, not in B: focused"]


def test_two_cases_of_one_label_are_both_compared(tmp_path):
    """What a changed suite left under one label are two cases, the second with a number."""
    first = make_result("linear", 0)
    second = with_setting([make_result("linear", 1)], "train", lr=1e-3)[0]
    runs = [[first, second], [second, first]]
    found = compare(sides_of(*runs, folder=tmp_path), Wanted(only=("size",)))
    assert {row.case for row in found.rows} == {"linear", "linear (2)"}
    assert {row.verdict for row in found.rows} == {"same"}


def test_several_runs_stand_beside_the_first(tmp_path):
    """Each further run has its columns, and its rows say which run they are of."""
    suite = make_suite()[:2]
    runs = [suite, [retimed(r, i, 1.4) for i, r in enumerate(suite)], suite]
    found = compare(sides_of(*runs, folder=tmp_path), Wanted(only=("latency",)))
    assert [(row.run, row.verdict) for row in found.rows] == [("B", "slower")] * 2 + [("C", "same")] * 2


def test_a_failed_case_is_told_and_loses_nothing(tmp_path):
    """What failed in one run is named with its reason; the others are compared."""
    suite = make_suite()[:2]
    failed = suite[0].model_copy(update={"status": "failed", "reason": "out of memory", "measurements": []})
    found = compare(sides_of(suite, [failed, suite[1]], folder=tmp_path), Wanted())
    assert "softmax in B: failed: out of memory" in found.left_out
    assert {row.case for row in found.rows} == {"linear"}


def test_json_keeps_to_its_schema_and_markdown_escapes(tmp_path):
    """A hostile label is data in JSON, and plain text in Markdown and in the terminal."""
    names = [write_run(tmp_path / name, [make_result(HOSTILE, i)]) for i, name in enumerate("ab")]
    found = json.loads(attnbench_here("compare", *names, "--format", "json").stdout)
    jsonschema.validate(found, schema("compare"))
    assert found["rows"][0]["case"] == HOSTILE
    markdown = attnbench_here("compare", *names, "--format", "md").stdout
    assert "<script>" not in markdown
    assert "&#60;script&#62;" in markdown
    assert "[red]r[/red]" in attnbench_here("compare", *names).stdout


def test_profiles_are_compared_by_label(tmp_path):
    """Two files of `profile --json` are held against each other, sizes and all; times need rounds."""
    spec = ProfileSpec(resolutions=[8, 16])
    for name, offset in (("old", 0), ("new", 1)):
        rows = [profile_row(i + offset, side, model=f"m{i}") for i in range(2) for side in (8, 16)]
        report = ProfileReport(environment=ENVIRONMENT, settings=spec, batch_sizes=[1], rows=rows)
        (tmp_path / f"{name}.json").write_text(report.model_dump_json())
    done = attnbench_here("compare", "old.json", "new.json", "--only", "latency,macs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "m1, forward pass of the model, batch 1, fp32, cpu, 2 threads" in done.stdout
    assert "Latency at 16 px [ms]" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a"], 2, "one run is named; compare takes two or more, or one with --case LABEL --against LABEL"),
        (["a", "nowhere"], 2, "'nowhere' is neither a folder, nor a file, nor a run below runs (there: "),
        (["a", "b", "--case", "lineal"], 2, "unknown case of these runs 'lineal' (did you mean 'linear'?)"),
        (["a", "--case", "linear", "--against", "sofmax"], 2, "(did you mean 'softmax'?)"),
        (["a", "--case", "linear", "--against", "linear"], 2, "names nothing but 'linear' itself"),
        (["a", "b", "--only", "latencies"], 2, "--only: 'latencies' is no quantity that these runs have"),
        (["a", "b", "--only", ","], 2, "--only takes names with commas, such as quality,latency, got ','"),
        (["a", "b", "--format", "xml"], 2, "--format takes table, md or json, got 'xml'"),
        (["a", "b", "--alpha", "5"], 2, "--alpha takes a share between 0 and 1, such as 0.05, got 5"),
        (["a", "b", "--time-margin", "six"], 2, "--time-margin takes a percentage below 100"),
        (["a", "b", "--session-margin", "100%"], 2, "--session-margin takes a percentage below 100"),
        (["a", "damaged"], 2, "results.jsonl:1: not a result"),
        (["a", "future"], 2, "format 99, this attnbench reads 1, 2 and 3"),
        (["a", "empty"], 2, "holds no results yet"),
        (["a", "a/none.json"], 2, "is no file of `attnbench profile --json`"),
        (["a", "others"], 1, "nothing was compared"),
    ],
)
def test_bad_input_is_told_in_words(here, words, code, said):
    """Every wrong word and every broken file is an error that says what, and what to do."""
    suite = make_suite()[:2]
    for name in "ab":
        write_run(here / "runs" / name, suite)
    line = (here / "runs/a/results.jsonl").read_bytes().splitlines()[0]
    write_run(here / "runs/others", [make_result("alone", 4, case={})])
    for name, content in (
        ("damaged", line.replace(b"softmax", b"sofdmax") + b"\n"),
        ("future", re.sub(rb',"checksum":"\w+"', b"", line).replace(b'"format":3', b'"format":99') + b"\n"),
        ("empty", b""),
    ):
        (here / "runs" / name).mkdir()
        (here / "runs" / name / "results.jsonl").write_bytes(content)
    (here / "a").mkdir()
    (here / "a" / "none.json").write_text("[]")
    (here / "a" / "results.jsonl").write_bytes((here / "runs/a/results.jsonl").read_bytes())
    done = attnbench_here("compare", *words, cwd=here)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())


def test_one_case_against_another_of_the_run(tmp_path):
    """Within one run rounds are pairs, and patterns name several cases."""
    found = compare(sides_of(seeded(), folder=tmp_path), Wanted(cases=("*",), against="softmax"))
    assert {row.case for row in found.rows} == set(LABELS[1:])
    assert {row.against for row in found.rows} == {"softmax"}
    assert rows_of(found, LATENCY_AT_8)["linear"].basis == "rounds side by side"
    with pytest.raises(UnknownNameError, match="unknown case of"):
        compare(sides_of(seeded(), folder=tmp_path / "b"), Wanted(cases=("lin",), against="softmax"))


@pytest.mark.parametrize("words", [(), ("--case", "dydila-token", "--against", "linear", "--equal", "steps")])
def test_everything_fits_80_columns(tmp_path, monkeypatch, words):
    """On a narrow terminal words fold, numbers do not, and no line is longer than it."""
    monkeypatch.setenv("COLUMNS", "80")
    runs = [QUICK.parent]
    if not words:
        suite = make_suite()[:3]
        factors = (1.0, 1.2, 1.3)
        runs = [
            write_run(tmp_path / f"{factor}", [retimed(r, i, factor) for i, r in enumerate(suite)])
            for factor in factors
        ]
    done = attnbench_here("compare", *runs, *words)
    assert done.returncode == 0, done.stderr
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert re.search(r"│ +(× |−|\+)[0-9.]+ to [−+]?[0-9.]+ +│", done.stdout)  # an interval on one line
    assert words or "Latency at 8 px [ms] ↓: run c" in done.stdout


@pytest.mark.parametrize("value", [0.0, -1.0, 1e200])
def test_distances_without_a_logarithm_are_not_tested_and_break_nothing(tmp_path, value):
    """A Frechet distance is tested as a ratio; one of rounding alone may be 0 or below."""
    named = Measurement(name="FD-digits", values=[value], n=500, better="lower")
    results = [with_measurement(result, named) for result in seeded()]
    found = compare(sides_of(seeded(), results, folder=tmp_path), Wanted())
    row = rows_of(found, "FD-digits")["linear"]
    assert (row.verdict, row.why, row.value) == ("not tested", "no ratio of these values", value)


def test_a_diagnosis_is_no_part_of_a_case(tmp_path):
    """With and without the stage `diagnose`: the same settings, so that cases called otherwise match."""
    looked_into = [
        r.model_copy(update={"label": f"my {r.label}", "case": {**r.case, "diagnose": {"images": 64}}})
        for r in seeded()
    ]
    found = compare(sides_of(seeded(), looked_into, folder=tmp_path), Wanted())
    assert {row.against for row in found.rows} == set(LABELS)
    assert not [note for note in notes(found) if "diagnose" in note]


@pytest.mark.parametrize(("last", "told"), [(1.1, True), (0.8, False)])
def test_latencies_that_all_went_one_way_are_told_to_look_like_the_machine(tmp_path, last, told):
    """Six cases a tenth slower in another session; with one of them faster instead, nothing is said."""
    suite = make_suite()[:6]
    factors = [1.1] * 5 + [last]
    later = [retimed(result, i, factors[i]) for i, result in enumerate(suite)]
    found = compare(sides_of(suite, later, folder=tmp_path), Wanted(only=("latency",)))
    assert len(found.rows) == 6
    assert any("All 6 latencies in B are longer" in note for note in notes(found)) == told


def _seen(level, note="of values"):
    """Return what a diagnosis would have measured, of one seed."""
    return Measurement(name="diagnose:effective_rank", values=[level], note=note)


def test_what_is_seen_inside_is_compared_where_it_is_asked_for(tmp_path):
    """A doubled rank is more, not better; without --only nothing else is adjusted by it."""
    linear = [result for result in seeded() if result.label.startswith("linear · ")]
    before, after = (
        [with_measurement(result, _seen(level * (1 + 0.01 * seed))) for seed, result in enumerate(linear)]
        for level in (4.0, 8.0)
    )
    sides = sides_of(before, after, folder=tmp_path)
    (row,) = compare(sides, Wanted(only=("inside",))).rows
    assert (row.verdict, row.base, row.value) == ("more", pytest.approx(4.04), pytest.approx(8.08))
    assert compare(sides, Wanted(only=("effective_rank",))).rows == [row]
    assert "diagnose:effective_rank" not in {one.name for one in compare(sides, Wanted()).rows}


def test_maps_of_values_and_of_tokens_are_refused(tmp_path):
    """They lead to other things: the error says to what."""
    before, after = (
        [with_measurement(make_result("linear"), _seen(4.0, note))]
        for note in ("of values", "of input tokens")
    )
    sides = sides_of(before, after, folder=tmp_path)
    with pytest.raises(UserInputError, match="the map of diagnose:effective_rank: of values in A"):
        compare(sides, Wanted(only=("inside",)))
