"""A finished run's report is written again only where it would be another one, or is not whole."""

from __future__ import annotations

import shutil

import pytest
from compare_cases import seeded, write_run
from report_cases import make_result

from attnbench.report import run_report
from attnbench.results import append_result
from attnbench.running import kept_report
from attnbench.running.kept_report import code_state, write_report_where_needed

CODE = code_state()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A run's folder with its report and a picture, and how often a report has been written since."""
    folder = write_run(tmp_path / "mine", seeded())
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"a")
    write_report_where_needed(folder, tmp_path, CODE)
    times = []

    def write(run):
        times.append(run.folder)
        return run_report.write_run_report(run)

    monkeypatch.setattr(kept_report, "write_run_report", write)
    return folder, times


def test_it_is_left_as_it_is(written):
    """Nothing has changed: the same paths, and the files as they were."""
    folder, times = written
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    paths = write_report_where_needed(folder, folder.parent, CODE)
    assert (paths.html, paths.markdown) == (folder / "report.html", folder / "report.md")
    assert not times
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def edit(path):
    path.write_bytes(path.read_bytes() + b" ")


CHANGES = {
    "a result more": lambda folder: append_result(folder / "results.jsonl", make_result("edit", 3)),
    "another picture": lambda folder: edit(folder / "pictures" / "a.png"),
    "a picture gone": lambda folder: (folder / "pictures" / "a.png").unlink(),
    "an edited page": lambda folder: edit(folder / "report.html"),
    "a figure gone": lambda folder: next((folder / "figures").glob("*.svg")).unlink(),
    "no markdown": lambda folder: (folder / "report.md").unlink(),
    "a state of nothing": lambda folder: (folder / "report.sha256").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_it_is_made_of_or_consists_of_counts(written, change):
    """Once more it is written, and then it is kept again."""
    folder, times = written
    change(folder)
    for _ in range(2):
        write_report_where_needed(folder, folder.parent, CODE)
    assert times == [folder]
    assert (folder / "report.html").read_bytes().rstrip().endswith(b"</html>")


def test_other_code_writes_it_again(written):
    """An attnbench that was edited or installed anew may write another report."""
    folder, times = written
    write_report_where_needed(folder, folder.parent, "another")
    assert times == [folder]


@pytest.mark.parametrize(
    "name", ["report/page/page.css", "report/page/page.html.j2", "report/paper/published.json", "results.py"]
)
def test_every_file_of_the_package_is_code(tmp_path, monkeypatch, name):
    """A page consists of templates, styles and tables as much as of Python."""
    package = tmp_path / "attnbench"
    shutil.copytree(kept_report.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept_report, "PACKAGE", package)
    before = code_state()
    edit(package / name)
    assert code_state() != before
