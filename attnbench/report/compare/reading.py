"""Reading what is compared: a run's folder or name, a file of results, or a file of `profile --json`."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from attnbench.errors import UserInputError, cannot_read
from attnbench.profiling.rows import ProfileRow, to_measurements
from attnbench.profiling.scaling import by_model, by_setting
from attnbench.report.compare.records import ComparedRun
from attnbench.report.configurations import Configuration, configurations, seed_of
from attnbench.report.tables import plain
from attnbench.results import Environment, Result, latest, read_results
from attnbench.storage.names import RESULTS
from attnbench.storage.run_folders import read_run

_SHORT_COMMIT = 9


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the runs to compare."""

    letter: str
    name: str
    results: tuple[Result, ...]

    @cached_property
    def cases(self) -> list[Configuration]:
        """Its cases, those that differ by seed together; a label that stands twice has a number."""
        seen: Counter[str] = Counter()
        found = []
        for case in configurations(self.results):
            seen[case.label] += 1
            number = seen[case.label]
            found.append(case if number == 1 else replace(case, label=f"{case.label} ({number})"))
        return found

    @property
    def record(self) -> ComparedRun:
        """What a reader must know of it."""
        places = [result.environment for result in self.results]
        packages = sorted({name for place in places for name in place.packages} - {"attnbench"})
        return ComparedRun(
            letter=self.letter,
            name=plain(self.name),
            suite=plain(self.results[0].suite),
            cases=len(self.cases),
            seeds=sorted({seed_of(result) for result in self.results}),
            commits=_distinct(_commit(place) for place in places if place.git_commit),
            hardware=_distinct(map(hardware, places)),
            packages={p: _distinct(place.packages.get(p, "none") for place in places) for p in packages},
            dates=sorted({result.created[:10] for result in self.results if result.created}),
        )


def read_sides(names: Sequence[str], runs: Path) -> list[Side]:
    """Read every run that is named, in that order; raises UserInputError where one cannot be read."""
    if len(names) > len(string.ascii_uppercase):
        most = len(string.ascii_uppercase)
        raise UserInputError(f"compare takes at most {most} runs, got {len(names)}; leave some out")
    return [
        Side(letter=letter, name=name, results=_read(name, runs))
        for letter, name in zip(string.ascii_uppercase, names, strict=False)
    ]


def hardware(environment: Environment) -> str:
    """Return what times depend on, in a few words."""
    device = "" if environment.device == "cpu" else f"{environment.device}, "
    threads = f"{environment.threads} thread{'s' if environment.threads != 1 else ''}"
    return f"{device}{environment.cpu}, {threads}"


def _read(name: str, runs: Path) -> tuple[Result, ...]:
    path = Path(name)
    if not path.is_file():
        if not path.is_dir() and not (runs / name).is_dir():
            raise UserInputError(
                f"{name!r} is neither a folder, nor a file, nor a run below {runs}{_there(runs)}; "
                f"name a run's folder, its {RESULTS}, or a file of `attnbench profile --json`"
            )
        return read_run(name, runs).results
    if path.suffix == ".json":
        return _profile(path)
    if path.name == RESULTS:  # with what its folder says of the cases that count
        return read_run(path.absolute().parent, runs).results
    results = latest(read_results(path))
    if not results:
        raise UserInputError(f"{path} holds no results; name another file")
    return tuple(results)


def _there(runs: Path) -> str:
    if not runs.is_dir():
        return " (which does not exist; --runs names another)"
    found = sorted(folder.name for folder in runs.iterdir() if (folder / RESULTS).is_file())
    return f" (there: {', '.join(found) or 'none'}; --runs names another folder)"


def _profile(path: Path) -> tuple[Result, ...]:
    """Return the rows of a profile as results: one of each model in each setting, matched by label."""
    wrong = "is no file of `attnbench profile --json`"
    try:
        found = json.loads(path.read_bytes())
        environment = Environment.model_validate(found["environment"])
        rows = [ProfileRow.model_validate(row) for row in found["rows"]]
    except OSError as error:
        raise UserInputError(cannot_read(path, error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserInputError(f"{path} {wrong} of this version: {where}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError(f"{path} {wrong}; name one, or a run's folder") from error
    if not rows:
        raise UserInputError(f"{path} holds no rows; run the profile to its end")
    return tuple(
        Result(
            case_id=f"{model}, {setting}",
            suite=path.name,
            label=f"{model}, {setting}",
            status="ok" if any(row.status == "ok" for row in sizes) else "failed",
            reason="; ".join(dict.fromkeys(row.reason for row in sizes if row.reason)),
            measurements=list({m.name: m for row in sizes for m in to_measurements(row)}.values()),
            environment=environment,
        )
        for setting, together in by_setting(rows).items()
        for model, sizes in by_model(together).items()
    )


def _commit(environment: Environment) -> str:
    return environment.git_commit[:_SHORT_COMMIT] + "+" * environment.git_dirty


def _distinct(values: object) -> list[str]:
    return list(dict.fromkeys(values))  # type: ignore[call-overload]
