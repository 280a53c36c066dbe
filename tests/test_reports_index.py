"""What lies in `reports/` is what today's code writes: every run's report, and the index of findings."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from command_line import ROOT
from report_cases import make_result

from attnbench.results import Measurement

SPEC = importlib.util.spec_from_file_location("reports_index", ROOT / "reports" / "index.py")
assert SPEC is not None
assert SPEC.loader is not None
reports_index = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reports_index)
AGAIN = "run `python reports/index.py`"


def report_of(folder: Path) -> dict[str, bytes]:
    """Return the files that a report consists of."""
    paths = [folder / "report.md", folder / "report.html", *(folder / "figures").rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("run", reports_index.run_folders(), ids=lambda run: run.parent.name)
def test_shipped_reports_are_what_todays_code_writes(run: Path, tmp_path: Path) -> None:
    """Byte for byte, from their results and pictures alone."""
    folder = tmp_path / run.name
    shutil.copytree(run, folder)
    reports_index.write_again(folder)
    committed, written = report_of(run), report_of(folder)
    assert committed.keys() == written.keys(), AGAIN
    assert [name for name in written if committed[name] != written[name]] == [], AGAIN


def test_the_index_is_what_the_script_writes() -> None:
    """One line for every folder, with its finding."""
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert text == reports_index.index(), AGAIN
    folders = {path.name for path in (ROOT / "reports").iterdir() if path.is_dir()} - {"__pycache__"}
    assert all(f"[{name}](" in text for name in folders)


def test_a_finding_names_the_best_and_the_worst_by_their_means_over_seeds() -> None:
    """A configuration's seeds count once; higher is better for accuracies."""

    def case(label: str, seed: int, distance: float, accuracy: float):
        found = [
            Measurement(name="FD-digits", values=[distance], better="lower"),
            Measurement(name="class_accuracy", values=[accuracy], better="higher"),
        ]
        settings = {"model": {"recipe": label}, "seed": seed}
        return make_result(
            f"{label} · seed={seed}", axes={"seed": str(seed)}, case=settings, measurements=found,
            case_id=f"{label}{seed}",
        )  # fmt: skip

    assert reports_index.finding_of((case("a", 0, 1.0, 0.5),)).startswith("1 case, one seed: no ranking; FD")
    results = (case("a", 0, 1.0, 0.5), case("a", 1, 9.0, 0.7), case("b", 0, 4.0, 0.9), case("b", 1, 4.0, 0.9))
    assert reports_index.finding_of(results) == (
        "4 cases, 2 seeds; FD-digits from 4 (b) to 5 (a); Class accuracy from 0.9 (b) to 0.6 (a)"
    )


def test_a_folder_that_says_no_finding_is_refused(tmp_path: Path) -> None:
    """An index with holes would be no index."""
    (tmp_path / "new").mkdir()
    with pytest.raises(
        SystemExit, match=r"new/README\.md: needs one paragraph that begins with 'Finding: ', has 0"
    ):
        reports_index.index(tmp_path)
    text = "# New\n\nFinding: a | b\nis true.\n\nCommand: `c`\n"
    (tmp_path / "new/README.md").write_text(text)
    assert reports_index.index(tmp_path).endswith("| [new](new/) | a \\| b is true. | `c` |\n")
