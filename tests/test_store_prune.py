"""The store listed and pruned: what results name stays, and what is worked on or was killed, too."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import attnbench_here
from exchange_cases import digits_case
from report_cases import make_result
from runner_cases import tiny_suite
from teaching_cases import SOFTMAX, student

from attnbench.commands import store as store_command
from attnbench.errors import UserInputError
from attnbench.results import Record, append_result, read_results
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import run
from attnbench.specs import DiagnoseSpec, PhotoPatchesData
from attnbench.stages.interrupts import Stopped
from attnbench.storage.claims import claim_folder, claims, keys_of, note_claim
from attnbench.storage.inventory import removable, remove, take_inventory
from attnbench.storage.locks import alone_at_once, alone_in, beside_others
from attnbench.storage.names import CLAIM, DONE, RESULTS
from attnbench.storage.records import write_record
from attnbench.storage.store import StageOutput, write_output

STAGES = ("prepare", "train", "sample", "evaluate")
ONE = "matrix.model.attention=[softmax]"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two suites that share a training: guidance 1 in both, 2 in the second; one more case was killed."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("made")
    start = partial(run, runs=place / "runs", device="cpu")
    one, two = tiny_suite(place, "one", ONE), tiny_suite(place, "two", ONE, "sample.guidance_scale=2.0")
    killed = tiny_suite(place, "killed", ONE, "seed=9")
    for suite in (one, two):
        start(suite, executor=run_inline)

    def killed_in_sampling(case, store, device, progress):
        def listen(stage, done, total, note):
            if stage == "sample":
                raise Stopped(9, "killed")

        return run_inline(case, store, device, listen)

    with pytest.raises(Stopped):
        start(killed, executor=killed_in_sampling)
    return place, {"one": one.cases[0], "two": two.cases[0], "killed": killed.cases[0]}


@pytest.fixture
def place(made, tmp_path):
    """A copy of its runs folder."""
    shutil.copytree(made[0] / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def cases(made):
    """Its cases by the name of their suite."""
    return made[1]


def stages(runs: Path) -> set[tuple[str, str]]:
    """Return the stages that lie in a store."""
    return {(path.parent.name, path.name) for stage in STAGES for path in (runs / "store" / stage).glob("*")}


def of(*cases) -> set[tuple[str, str]]:
    """Return the stages that cases are made of."""
    return {place for case in cases for place in keys_of(case).items()}


def prune(place: Path, *words: str):
    """Run `attnbench store prune` there; return what it said."""
    done = attnbench_here("store", "prune", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_names_sizes_states_and_runs(place, cases):
    """Every folder with the runs whose results name it; sums by stage, by run, and of all."""
    shutil.rmtree(place / "runs" / "two")
    said = attnbench_here("store", "list", cwd=place)
    assert said.returncode == 0, said.stderr
    keys = {name: keys_of(case) for name, case in cases.items()}
    assert keys["one"]["train"] == keys["two"]["train"]
    words = [line.split() for line in said.stdout.splitlines()]
    lines = {tuple(line[:2]): " ".join(line[4:]) for line in words}
    assert lines["train", keys["one"]["train"]] == "finished one"
    assert lines["sample", keys["two"]["sample"]] == "finished –"
    assert lines["train", keys["killed"]["train"]] == "of an unfinished case –"
    assert lines["sample", keys["killed"]["sample"]] == "unfinished –"
    listed = take_inventory(place / "runs")
    files = [path for path in (place / "runs/store").rglob("*") if path.is_file()]
    counted = [path for path in files if "cells" not in path.parts]
    assert listed.size_bytes == sum(path.stat().st_size for path in counted)
    assert "run one: 4 folders, " in said.stdout
    assert "all: " in said.stdout
    assert "`attnbench store prune` would remove 2 folders, " in said.stdout


def test_prune_removes_what_no_result_names(place, cases):
    """The second run is gone: its own stages go; the training it shared and the killed run stay."""
    assert "nothing to remove: every stage is named by a result" in prune(place, "--yes")
    before = stages(place / "runs")
    assert before == of(*cases.values()) - {("evaluate", cases["killed"].key("evaluate"))}
    shutil.rmtree(place / "runs" / "two")
    assert "nothing was removed (--dry-run)" in prune(place, "--dry-run")
    assert stages(place / "runs") == before
    said = prune(place, "--yes")
    gone = of(cases["two"]) - of(cases["one"], cases["killed"])
    assert {stage for stage, _ in gone} == {"sample", "evaluate"}
    assert all(key in said for _, key in gone)
    assert "removed 2 folders, " in said
    assert stages(place / "runs") == before - gone
    outcome = run(tiny_suite(place, "one", ONE), place / "runs", device="cpu", executor=run_inline)
    assert outcome.computed == 0


def test_what_a_killed_run_left_goes_when_asked(place, cases):
    """Its finished training, too, which no result names; with --features what scoring would compute again."""
    prune(place, "--yes", "--unfinished")
    assert stages(place / "runs") == of(cases["one"], cases["two"])
    assert any((place / "runs/store/features").iterdir())
    prune(place, "--yes", "--features")
    assert not any((place / "runs/store/features").iterdir())
    assert list((place / "runs/store/profile").glob("*/session.json"))
    assert stages(place / "runs") == of(cases["one"], cases["two"])


def test_older_overrides_and_copies_elsewhere_keep_what_they_name(place, cases):
    """Every line of a run's results counts, not those of its last overrides alone; so does a folder named."""
    (place / "elsewhere").mkdir()
    (place / "runs/two").rename(place / "elsewhere/two")
    assert "nothing to remove" in prune(place, "--yes", "--keep", "elsewhere/two")
    run(
        tiny_suite(place, "one", ONE, "sample.guidance_scale=2.0"),
        place / "runs",
        device="cpu",
        executor=run_inline,
    )
    assert "nothing to remove" in prune(place, "--yes")
    with (place / "runs/one" / RESULTS).open() as lines:
        assert sum(1 for _ in lines) > 1
    done = attnbench_here("store", "prune", "--keep", "nowhere", cwd=place)
    assert (done.returncode, "nowhere is not the folder of a run" in done.stderr) == (2, True)


@pytest.mark.parametrize("holder", ["run", "case", "stage", "profile"])
def test_nothing_goes_while_somebody_works(place, cases, holder):
    """Not while a run is going on, of this version or an earlier one, whatever it works on."""
    shutil.rmtree(place / "runs" / "two")
    store, before = place / "runs/store", stages(place / "runs")
    key = keys_of(cases["killed"])
    folder = {
        "run": store,
        "case": store / "cells" / key["evaluate"],
        "stage": store / "sample" / key["sample"],
        "profile": store / "profile",
    }[holder]
    with (beside_others if holder == "run" else alone_in)(folder, print):
        done = attnbench_here("store", "prune", "--yes", cwd=place)
        assert attnbench_here("store", "list", cwd=place).returncode == 0
    assert done.returncode == 2
    assert re_says(done.stderr, "works in", str(folder), "nothing was removed: prune when it has ended")
    assert stages(place / "runs") == before


def re_says(text: str, *parts: str) -> bool:
    """Tell whether all parts stand in a text that may be broken into lines."""
    return all(part in " ".join(text.split()) for part in parts)


def test_a_run_keeps_the_store_for_itself_and_others_beside_it(place):
    """While its cases run a prune cannot have the store alone; another run can begin."""
    seen = []

    def look(case, store, device, progress):
        with alone_at_once(store, print) as alone, beside_others(store, print):
            seen.append(alone)
        return run_inline(case, store, device, progress)

    run(tiny_suite(place, "look", ONE, "seed=3"), place / "runs", device="cpu", executor=look)
    assert seen == [False]
    with alone_at_once(place / "runs/store", print) as alone:
        assert alone


def test_what_a_run_names_must_be_clear(place):
    """A damaged line, or the settings of another attnbench: nothing goes, and the reason is said."""
    shutil.rmtree(place / "runs" / "two")
    before = stages(place / "runs")
    lines = place / "runs/one" / RESULTS
    whole = lines.read_text()
    for damaged in (
        whole.replace('"softmax"', '"softmix"', 1),
        whole.partition("\n")[0].partition(',"checksum"')[0].replace('"depth":1', '"depht":1') + "}\n",
    ):
        lines.write_text(damaged)
        done = attnbench_here("store", "prune", "--yes", cwd=place)
        assert done.returncode == 2, done.stdout
        assert re_says(done.stderr, "unclear what a run names", str(lines), "run the suite again")
        said = attnbench_here("store", "list", cwd=place).stdout
        assert "warning: nothing can be pruned" in said
    assert stages(place / "runs") == before


@pytest.mark.parametrize("how", ["link to nowhere", "results gone", "lost while it was asked"])
def test_a_run_whose_results_are_not_there_is_unclear(place, how):
    """A run on a disk that is not mounted, or one without its results: its stages are not free to go."""
    shutil.rmtree(place / "runs" / "two")
    run_dir, before = place / "runs/one", stages(place / "runs")
    if how == "lost while it was asked":
        inventory, runs = take_inventory(place / "runs"), place / "runs"
        (run_dir / RESULTS).write_text("{}\n")
        with pytest.raises(UserInputError, match="unclear what a run names"):
            remove(inventory, removable, partial(take_inventory, runs), print)
    else:
        if how == "link to nowhere":
            shutil.rmtree(run_dir)
            run_dir.symlink_to(place / "unmounted")
        else:
            (run_dir / RESULTS).unlink()
        done = attnbench_here("store", "prune", "--yes", cwd=place)
        assert done.returncode == 2
        assert re_says(done.stderr, "unclear what a run names", str(run_dir), "bring it back")
    assert stages(place / "runs") == before


def test_links_are_followed(place, cases):
    """Runs beside what a linked store leads to count; a stage that lies on another disk goes there, too."""
    other = place / "other"
    other.mkdir()
    (other / "store").symlink_to("../runs/store")
    assert not removable(take_inventory(other))
    shutil.rmtree(place / "runs" / "two")
    stage = place / "runs/store/sample" / cases["two"].key("sample")
    stage.rename(place / "large")
    stage.symlink_to(place / "large")
    prune(place, "--yes")
    assert not stage.is_symlink()
    assert not (place / "large").exists()


def test_every_line_of_a_case_names_its_diagnosis(place, cases):
    """A diagnosis is no part of a case's id: a later line without one does not set an earlier one free."""
    path, store = place / "runs/one" / RESULTS, place / "runs/store"
    plain = read_results(path)[0]
    diagnosed = cases["one"].model_copy(update={"diagnose": DiagnoseSpec()})
    folder = store / "diagnose" / diagnosed.key("diagnose")
    folder.mkdir(parents=True)
    write_output(folder, StageOutput())
    assert [found.path for found in removable(take_inventory(place / "runs"))] == [folder]
    append_result(path, plain.model_copy(update={"case": diagnosed.model_dump(mode="json")}))
    append_result(path, plain)
    assert not removable(take_inventory(place / "runs"))


def test_a_case_killed_in_its_diagnosis_is_not_finished(place, cases):
    """Its stages stay for the same command to go on from, until they are asked for; then it is forgotten."""
    for name in ("one", "two"):
        shutil.rmtree(place / "runs" / name)
    case, store = cases["one"].model_copy(update={"diagnose": DiagnoseSpec()}), place / "runs/store"
    note_claim(case, store)
    kept = of(case) & stages(place / "runs")
    prune(place, "--yes")
    assert stages(place / "runs") >= kept
    prune(place, "--yes", "--unfinished")
    assert not stages(place / "runs")
    assert not list(claims(store))


def test_without_consent_nothing_goes(place):
    """No terminal and no --yes; a folder that is no runs folder."""
    shutil.rmtree(place / "runs" / "two")
    before = stages(place / "runs")
    done = attnbench_here("store", "prune", cwd=place)
    assert (done.returncode, stages(place / "runs")) == (2, before)
    assert "nothing is removed without consent: add --yes" in done.stderr
    with pytest.raises(
        UserInputError, match=r"has no store; name the folder that runs were kept in with --runs"
    ):
        store_command.print_list(place, [])


def test_half_a_removal_is_not_a_finished_stage(place, cases, monkeypatch):
    """Struck while it removes: the mark of a finished stage goes first, so that the rest is not trusted."""
    shutil.rmtree(place / "runs" / "two")

    def struck(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("attnbench.storage.inventory.shutil.rmtree", struck)
    with pytest.raises(Stopped):
        store_command.prune(place / "runs", [], unfinished=False, features=False, dry_run=False, yes=True)
    gone = of(cases["two"]) - of(cases["one"], cases["killed"])
    left = [stage for stage, key in gone if (place / "runs/store" / stage / key / DONE).exists()]
    assert len(left) == 1, "the one that it was not at yet"


@pytest.fixture
def taught(tmp_path):
    """A student, and a store that holds the finished training of its teacher alone, on other data."""
    teacher = digits_case("teacher", SOFTMAX, steps=3)
    teacher = teacher.model_copy(update={"data": PhotoPatchesData()})
    for stage in ("prepare", "train"):
        folder = tmp_path / "runs/store" / stage / teacher.key(stage)
        folder.mkdir(parents=True)
        write_output(folder, StageOutput())
    return tmp_path / "runs", student(teacher, asked={})


def test_a_teacher_s_training_is_named_by_its_student_s_result(taught):
    """`--case` may have chosen the student alone: no other result names its teacher."""
    runs, case = taught
    assert len(removable(take_inventory(runs))) == 2
    (runs / "taught").mkdir()
    settings = case.model_dump(mode="json")
    append_result(runs / "taught" / RESULTS, make_result(case.label, case=settings, case_id=case.id))
    assert not removable(take_inventory(runs))


def test_a_killed_student_keeps_its_teacher_s_training(taught):
    """Until its stages are asked for; a note of an earlier version, which knows no teacher, still reads."""
    runs, case = taught
    claim_folder(case, runs / "store").mkdir(parents=True)
    note_claim(case, runs / "store")
    assert not removable(take_inventory(runs))
    path = claim_folder(case, runs / "store") / CLAIM
    (claim,) = claims(runs / "store")
    write_record(path, Earlier(**claim.model_dump(exclude={"teacher", "format", "checksum"})))
    (earlier,) = claims(runs / "store")
    assert (earlier.keys, earlier.teacher) == (claim.keys, {})
    note_claim(case, runs / "store")
    remove(take_inventory(runs), partial(removable, unfinished=True), partial(take_inventory, runs), print)
    assert not stages(runs)
    assert not list(claims(runs / "store"))


class Earlier(Record):
    """A claim as it was written before cases had teachers."""

    suite: str
    label: str
    keys: dict[str, str]
