"""What machines of one launch say to each other before anything trains, and what does not fit."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from attnbench import __version__
from attnbench.results import Record
from attnbench.running.executors.asking import distinct, lacking, other_code, source_digest
from attnbench.running.executors.launcher import Launch
from attnbench.specs import Case, content_hash
from attnbench.storage.names import LOCK


class First(Record):
    """What the first machine says of itself and the run."""

    attempt: str
    """Of a run that is started again, in a store that may keep what the attempt before has said."""
    versions: dict[str, str]
    code: str
    device: str
    cases: list[tuple[str, str]]
    """Labels, and hashes of the settings."""
    asked: list[str]
    """Cases that need different things, as JSON."""
    store: Path
    mark: str


class Answer(Record):
    """What another machine says to it."""

    attempt: str
    name: str
    address: str
    port: int
    processes: int
    problems: list[str]


def first_word(attempt: str, cases: Sequence[Case], store: Path, mark: Path, device: str) -> First:
    """Return what the first machine says; `mark` is a folder of the store that it holds."""
    return First(
        attempt=attempt,
        versions=versions(),
        code=source_digest(),
        device=torch.device(device).type,
        cases=_settings(cases),
        asked=distinct(cases),
        store=store,
        mark=str(mark),
    )


def lacks(first: First, launch: Launch, cases: Sequence[Case], device: str) -> list[str]:
    """Return what of this machine does not fit the first one, one sentence each."""
    if problems := other_versions(versions(), first.versions) or other_code(first.code):
        return problems
    problems = lacking(first.asked, first.store, str(Path(first.mark) / LOCK), first.code)
    settings, theirs_are = _settings(cases), first.cases
    others = [one[0] for one, there in zip(settings, theirs_are, strict=False) if one != there]
    if len(settings) != len(theirs_are) or others:
        count = f"{len(settings)} cases, and the first machine {len(theirs_are)}"
        what = f"{others[0]} differs from the first machine's" if others else count
        problems.append(f"its suite has other settings: {what}; start the same command with the same files")
    if torch.device(device).type != first.device:
        problems.append(f"it computes on {device}, the first machine on {first.device}; say --device cpu")
    elif first.device == "cuda" and torch.cuda.device_count() < launch.here:
        problems.append(
            f"{launch.here} processes need {launch.here} GPUs, it shows {torch.cuda.device_count()}; start "
            "fewer there"
        )
    return problems


def other_versions(here: Mapping[str, str], first: Mapping[str, str]) -> list[str]:
    """Return which version of a machine is not the first one's, in one sentence; empty: none."""
    for name, ours in here.items():
        if ours != (theirs := first.get(name)):
            return [f"it has {name} {ours}, the first machine {theirs}; install the same one"]
    return []


def versions() -> dict[str, str]:
    """Return of this machine what machines of one case must have alike."""
    return {"attnbench": __version__, "torch": torch.__version__, "Python": platform.python_version()}


def _settings(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Return of each case its label and a hash of its settings; code is compared by itself, with words."""
    return [(case.label, content_hash(case.model_dump(mode="json", exclude={"code"}))) for case in cases]
