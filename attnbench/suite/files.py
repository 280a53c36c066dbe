"""Where suites lie: the shipped ones by name, the user's by path; imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import SuiteError, UnknownNameError, did_you_mean
from attnbench.yaml_source import read_settings

BASE = "_"  # how names of shipped files begin that only other suites extend


@dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One line of `attnbench list suites`."""

    name: str
    question: str
    path: Path


def list_suites() -> list[SuiteRow]:
    """Return the shipped suites by name."""
    rows = []
    for name, path in shipped_files().items():
        question = str(read_settings(path).data.get("question", "")).strip()
        rows.append(SuiteRow(name=name, question=question, path=path))
    return rows


def shipped_folder() -> Path:
    """Return the folder of the shipped suites: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "suites"
    return inside if inside.is_dir() else package.parent / "suites"


def shipped_files() -> dict[str, Path]:
    """Return the files of the shipped suites by name, without those that suites extend (`_paper.yaml`)."""
    found = sorted(shipped_folder().glob("*.yaml"))
    return {path.stem: path for path in found if not path.stem.startswith(BASE)}


def is_shipped(path: Path) -> bool:
    """Tell whether a file is a shipped suite, which its name finds wherever this attnbench is installed."""
    return path.resolve() in {file.resolve() for file in shipped_files().values()}


def find_suite(source: str | Path) -> Path:
    """Return the file of a suite; raises SuiteError or UnknownNameError with the nearest spelling."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path
    shipped = shipped_files()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1 and not path.exists():
        raise UnknownNameError("suite", str(source), shipped)
    kind = "is a folder, not a suite" if path.is_dir() else "no such file"
    beside = [str(file) for file in path.parent.glob("*.yaml")]
    near = "" if path.is_dir() else did_you_mean(str(path), beside)
    raise SuiteError(f"{path}: {kind}{near}; shipped suites: {', '.join(sorted(shipped))}")
