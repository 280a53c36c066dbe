"""What the command line changes in a suite's settings: `-o KEY=VALUE` and `--seeds N`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import SuiteError, UserInputError
from attnbench.suite import matrix
from attnbench.suite.extending import EXTENDS, OTHER_PLACES
from attnbench.yaml_source import KeyPath, Origin, Settings, parse_override, show_path, show_value

PATH_SETTINGS: tuple[KeyPath, ...] = (
    ("data", "path"),
    ("data", "codec", "path"),
    ("train", "init_from"),
    ("train", "teacher", "model"),
    ("evaluate", "weights"),
)
"""Paths; relative ones start from the folder of the suite's file that states them, in an override from the
working directory."""
MOST_SEEDS = 1000  # more is a slip of the finger, and its cases fill the memory
_AROUND = (("matrix",), ("exceptions", "set"))  # in these, a path is the value of a dotted key


def override(settings: Settings, overrides: Sequence[str], seeds: int | None = None) -> None:
    """Apply overrides, then seeds; one that the matrix would overwrite is an error, not a silent nothing."""
    assigned = []
    for index, text in enumerate(overrides):
        matrix.expand_shorthand(settings.data)
        path, value, origin = parse_override(text, index)
        if path[0] == EXTENDS:
            raise SuiteError(
                f"{origin.where}: extends is read before any override; write a suite that extends both files"
            )
        settings.assign(path, value, origin)
        _take_back(settings, path)
        assigned.append((path, origin))
    varied = settings.data.get("matrix")
    for path, origin in assigned:
        for key in varied if isinstance(varied, dict) else ():
            target = tuple(key.split("."))
            if path[: len(target)] == target:
                raise SuiteError(
                    f"{origin.where}: the suite's matrix varies {key}; "
                    f"give its values instead, as in -o matrix.{key}=[VALUE]"
                )
        for target in _excepted(settings):
            if path[: len(target)] == target:
                raise SuiteError(
                    f"{origin.where}: the suite's exceptions set {show_path(target)} for some cases; "
                    "give them too, as in -o exceptions=[] for none"
                )
    if seeds is not None:
        _give_seeds(settings, seeds)


def absolute_override(text: str) -> str:
    """Return an override that says the same in any folder and on any line, as it was given where it does.

    Relative paths in it start from the working directory; `~` is the home folder. Raises SuiteError.
    """
    path, value, origin = parse_override(text, 0)
    absolute = _absolute(path, value, origin.folder)
    if absolute == value and text.isprintable():
        return text
    key = text.partition("=")[0].strip()
    plain = f"{key}={absolute}"
    as_it_is = isinstance(absolute, str) and plain.isprintable() and parse_override(plain, 0)[1] == absolute
    return plain if as_it_is else f"{key}={json.dumps(absolute)}"


def absolute_path(folder: Path, written: str) -> str:
    """Return where a path of a suite leads: `~` is the home folder, a relative one starts from `folder`."""
    return os.path.normpath(folder / os.path.expanduser(written))


def _absolute(path: KeyPath, value: Any, folder: Path) -> Any:
    """Return a value with every path in it absolute."""
    if isinstance(value, dict):
        return {key: _absolute((*path, key), inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(path, inner, folder) for inner in value]
    return absolute_path(folder, value) if isinstance(value, str) and _is_path(path) else value


def _is_path(path: KeyPath) -> bool:
    parts = tuple(part for key in path for part in str(key).split("."))
    return any(parts == (*around, *setting) for setting in PATH_SETTINGS for around in ((), *_AROUND))


def _give_seeds(settings: Settings, seeds: int) -> None:
    """Let the suite run with the seeds 0 to `seeds` - 1; refuses to guess where seeds are given already."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise UserInputError(f"--seeds takes a number of seeds, 1 to {MOST_SEEDS}, got {seeds}")
    given = settings.data.get("seed", 0)
    origin = settings.origin(("seed",))
    if origin.overrides:
        raise UserInputError(f"--seeds {seeds} and {origin.where} both give the seeds; leave one of them out")
    if isinstance(given, list):
        raise SuiteError(
            f"{origin.where}: seed: the suite lists its seeds ({', '.join(map(show_value, given))}); leave "
            f"--seeds {seeds} out, or give others with -o seed=[...]"
        )
    where = Origin((1, -1, 0, 0), f"option '--seeds {seeds}'", Path.cwd())
    settings.assign(("seed",), list(range(seeds)), where)


def _take_back(settings: Settings, path: KeyPath) -> None:
    """Remove the other place of the autoencoder that a suite's file names; two overrides remain an error."""
    for other in OTHER_PLACES.get(str(path[-1]), ()) if path[:-1] == ("data", "codec") else ():
        if not settings.origin((*path[:-1], other)).overrides:
            settings.data["data"]["codec"].pop(other, None)


def _excepted(settings: Settings) -> list[KeyPath]:
    """Return the settings that any exception sets, right or wrong."""
    rules = settings.data.get("exceptions", [])
    sets = [rule.get("set") for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
    return [tuple(str(key).split(".")) for mapping in sets if isinstance(mapping, dict) for key in mapping]
