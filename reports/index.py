"""Write the reports of all shipped runs again with today's code, and `reports/README.md`, one finding a line.

    python reports/index.py

A folder of runs has its finding from their results; any other says it in its README.md, in a paragraph that
begins with `Finding: `, and how to get it again in one that begins with `Command: `.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from attnbench.report.configurations import configurations, over_seeds, seed_of
from attnbench.report.quantities import ACCURACY, quality_quantities
from attnbench.report.run_report import write_run_report
from attnbench.results import Result
from attnbench.storage.names import REPORT_HTML, REPORT_MARKDOWN, RESULTS
from attnbench.storage.run_folders import read_run

HERE = Path(__file__).resolve().parent
INDEX = "README.md"
TOP = """# Reports

Written by `python reports/index.py`, which makes the reports of runs again, too; a test says that they are
what today's code writes.

One folder per question. Of a suite, one folder in it per run: `<date>-<hardware>-torch<x.y>/` holds what
`attnbench run` wrote (`results.jsonl` with the environment in every line, `run.json`, `report.md`,
`report.html`, pictures). To add one:

    attnbench run suites/quick.yaml
    cp -r runs/quick reports/quick/<date>-<hardware>-torch<x.y>
    python reports/index.py

| what | finding | command |
|---|---|---|
"""


def run_folders(reports: Path = HERE) -> list[Path]:
    """Return the folders of all shipped runs."""
    return sorted(path.parent for path in reports.glob(f"*/*/{RESULTS}"))


def write_again(folder: Path) -> None:
    """Write a run's report from its results, in place of all that a report consists of."""
    shutil.rmtree(folder / "figures", ignore_errors=True)
    for name in (REPORT_MARKDOWN, REPORT_HTML):
        (folder / name).unlink(missing_ok=True)
    write_run_report(read_run(folder, folder.parent))


def index(reports: Path = HERE) -> str:
    """Return the index; raises SystemExit where a folder says no finding."""
    folders = sorted(path for path in reports.iterdir() if path.is_dir() and path.name != "__pycache__")
    return TOP + "".join(f"| {' | '.join(line)} |\n" for folder in folders for line in _lines(folder))


def _lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield what, finding and command of a folder, or of each of its runs."""
    runs = [run for run in run_folders(folder.parent) if run.parent == folder]
    for run in runs:
        place = f"{folder.name}/{run.name}"
        read = read_run(run, folder)
        what = f"[{folder.name}]({place}/{REPORT_MARKDOWN}), {run.name} ([page]({place}/{REPORT_HTML}))"
        yield what, _cell(finding_of(read.results)), f"`attnbench run {read.suite}`"
    if not runs:
        readme = folder / INDEX
        yield f"[{folder.name}]({folder.name}/)", _said(readme, "Finding: "), _said(readme, "Command: ")


def finding_of(results: tuple[Result, ...]) -> str:
    """Return in one line how good the best and the worst configuration are, by their means over seeds."""
    seeds = len(set(map(seed_of, results)))
    cases = "1 case" if len(results) == 1 else f"{len(results)} cases"
    told = [f"{cases}, {f'{seeds} seeds' if seeds > 1 else 'one seed: no ranking'}"]
    for quantity in (*quality_quantities(results)[:1], ACCURACY):
        found = [
            (measured.mean, configuration.label)
            for configuration in configurations(results)
            if (measured := over_seeds(configuration, quantity.name)) is not None
        ]
        if found:
            ordered = sorted(found, reverse=quantity.better == "higher")
            best, worst = (f"{value:.3g} ({label})" for value, label in (ordered[0], ordered[-1]))
            told.append(f"{quantity.title} from {best} to {worst}")
    return "; ".join(told)


def _said(readme: Path, start: str) -> str:
    """Return the paragraph of a README that begins with a word, without it, on one line."""
    paragraphs = readme.read_text(encoding="utf-8").split("\n\n") if readme.is_file() else []
    found = [" ".join(text.split()) for text in paragraphs if text.startswith(start)]
    if len(found) != 1:
        raise SystemExit(f"{readme}: needs one paragraph that begins with {start!r}, has {len(found)}")
    return _cell(found[0].removeprefix(start.strip()).strip())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for run in run_folders():
        write_again(run)
        print(run.relative_to(HERE), "written again")
    (HERE / INDEX).write_text(index(), encoding="utf-8")
    print(INDEX, "written")
