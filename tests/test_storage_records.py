"""Everything stored is checked when it is read: no changed digit or bit becomes a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT
from stored_runs import STILL_FINISHED

from attnbench.commands.suites import report
from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.images import open_images
from attnbench.results import Measurement, Result, append_result, environment, read_results
from attnbench.running.runner import Listener, run
from attnbench.storage.names import DAMAGED_RESULTS, RESULTS, SESSION
from attnbench.storage.records import read_record, write_record
from attnbench.storage.run_folders import set_damaged_aside
from attnbench.storage.store import StageOutput, read_output, write_output
from attnbench.suite.loading import load_suite


def result(case_id: str, value: float = 1.5) -> Result:
    return Result(
        case_id=case_id,
        suite="s",
        label=case_id,
        status="ok",
        measurements=[Measurement(name="FID", values=[value])],
        environment=environment("cpu", 1),
    )


def change(path: Path, old: str, new: str) -> None:
    """Change what stands in a file once."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_changed_digit_makes_a_record_one_that_is_not_there(tmp_path):
    """And who asks is told which file it is; an absent one is nothing to tell of."""
    told: list[Path] = []
    output = StageOutput(measurements=[Measurement(name="FID", values=[1.5])])
    assert read_output(tmp_path, told.append) is None
    write_output(tmp_path, output)
    assert read_output(tmp_path, told.append) == output
    change(tmp_path / "done.json", "1.5", "1.7")
    assert told == []
    assert read_output(tmp_path, told.append) is None
    assert told == [tmp_path / "done.json"]


def test_a_record_without_a_checksum_is_taken_as_it_is(tmp_path):
    """Earlier versions wrote none."""
    output = StageOutput(measurements=[Measurement(name="FID", values=[1.5])])
    (tmp_path / "done.json").write_text(output.model_dump_json(exclude={"artefact_sha256"}))
    assert read_output(tmp_path) == output


def test_a_record_of_another_folder_is_damage(tmp_path):
    """Two whole records that have changed places would exchange the numbers of two cases."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name / "done.json", StageOutput())
    (tmp_path / "one" / "done.json").rename(tmp_path / "other" / "done.json")
    assert read_record(tmp_path / "other" / "done.json", StageOutput) is None


def test_a_changed_digit_in_an_earlier_line_of_results_is_an_error(tmp_path):
    """It names file, line and the next step; a line edited on purpose is taken without its checksum."""
    path = tmp_path / RESULTS
    append_result(path, result("a", 31.25))
    append_result(path, result("b", 2.5))
    change(path, "31.25", "37.25")
    told = r"results\.jsonl:1: not a result: .*; run the suite again, .*checksum"
    with pytest.raises(UserInputError, match=told):
        read_results(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0][: lines[0].index(',"checksum"')] + "}\n" + lines[1])
    assert [r.measurements[0].value for r in read_results(path)] == [37.25, 2.5]


@pytest.mark.parametrize("line", [b"[]", b"\xff\xfe", b'{"format": 1}', b'{"format": 1, "case_id": 3}'])
def test_nonsense_in_results_is_one_error(tmp_path, line):
    """No list, no bytes outside UTF-8 and no half record is a traceback."""
    path = tmp_path / RESULTS
    append_result(path, result("a"))
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(UserInputError, match=r"results\.jsonl:1: not a result: "):
        read_results(path)


def test_damaged_lines_are_set_aside(tmp_path):
    """They are kept in a file of their own; whole lines and another version's stay where they are."""
    path = tmp_path / RESULTS
    for name in ("a", "b", "c"):
        append_result(path, result(name))
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[1].replace(b"1.5", b"1.7")
    newer = b'{"format": 99}\n'
    path.write_bytes(lines[0] + damaged + newer + lines[2])
    assert "damaged lines (2) were moved to results.damaged.jsonl" in set_damaged_aside(tmp_path)
    assert path.read_bytes() == lines[0] + newer + lines[2]
    assert (tmp_path / DAMAGED_RESULTS).read_bytes() == damaged
    assert set_damaged_aside(tmp_path) == ""


@pytest.fixture
def finished(tmp_path):
    """A finished suite, and how to run it again: returns what was told and what came out."""
    runs = tmp_path / "runs"
    shutil.copytree(ROOT / "tests" / "stored", runs)
    (runs / "stored" / RESULTS).unlink()  # written again, as this version does

    def refuse(case, *_):
        raise AssertionError(f"{case.label} was computed again")

    def again():
        told: list[str] = []
        outcome = run(
            load_suite(runs / "stored.yaml", STILL_FINISHED),
            runs,
            executor=refuse,
            listener=Listener(notice=told.append),
        )
        return [text for text in told if "train.ema_decay" not in text], outcome  # its 20 steps are warned of

    again()  # measures the costs
    return runs, again


def test_results_are_written_once_more(finished, capsys):
    """`report` refuses a changed line; the suite, run again, writes it from the store; then it reports."""
    runs, again = finished
    path = runs / "stored" / RESULTS
    lines = path.read_text().splitlines(keepends=True)
    whole = read_results(path)[-1]
    last = lines[-1].replace('"loss":[[20.0,1.', '"loss":[[20.0,7.')
    assert last != lines[-1]
    path.write_text("".join([*lines[:-1], last]))
    with pytest.raises(UserInputError, match="not a result"):
        report("stored", runs)
    told, _ = again()
    assert ["results.damaged.jsonl" in text for text in told] == [True]
    assert read_results(path)[-1].curves == whole.curves
    report("stored", runs)
    assert again()[0] == []


def test_a_changed_session_is_measured_again_and_the_report_says_so(finished):
    """A digit of a count of multiply-adds; counts are the same again, and every case carries the note."""
    runs, again = finished
    (session,) = runs.glob(f"store/profile/*/{SESSION}")
    _, before = again()
    session.write_text(session.read_text().replace('"macs_full":', '"macs_fill":', 1))
    told, after = again()
    assert any("session.json was damaged: all costs are measured again" in text for text in told)
    for old, new in zip(before.results, after.results, strict=True):
        assert new.measurement("profile_warnings").note.endswith("measured again")
        assert [m for m in new.measurements if m.name != "profile_warnings"] == old.measurements
    assert "all costs are measured again" in after.report.html.read_text()


def test_a_changed_picture_is_brought_from_the_store_again(finished):
    """The copy beside the report is compared with what the stage wrote."""
    runs, again = finished
    _, outcome = again()
    shown = runs / "stored" / outcome.results[0].artefacts["grid"]
    (picture,) = (p for p in runs.glob("store/sample/*/grid.png") if p.read_bytes() == shown.read_bytes())
    write_output(picture.parent, read_output(picture.parent))  # as this version writes it
    shown.write_bytes(shown.read_bytes()[:-20])
    assert again()[0] == []
    assert shown.read_bytes() == picture.read_bytes()
    picture.write_bytes(picture.read_bytes()[:-20])
    shown.unlink()
    (told,) = again()[0]
    assert f"{picture} was damaged; remove {picture.parent}/done.json and run the same command again" in told


def test_a_changed_pixel_of_an_npz_file_is_noticed(tmp_path):
    """Pixels are read past the zip archive, whose checksum is compared all the same."""
    path = tmp_path / "samples.npz"
    images = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=images)
    assert len(open_images(path).shards[0].key) == 64
    content = bytearray(path.read_bytes())
    content[content.index(images[3].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"samples\.npz cannot be read \(Bad CRC-32"):
        _ = open_images(path).shards[0].key
