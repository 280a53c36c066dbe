"""`extends:` of a suite: the settings of other files under its own, each with the place where it stands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.errors import SuiteError, did_you_mean
from attnbench.suite.files import BASE, shipped_files, shipped_folder
from attnbench.suite.matrix import expand_shorthand
from attnbench.yaml_source import KeyPath, Origin, Settings, read_settings, show_value, shown_file

EXTENDS = "extends"
OF_THE_SUITE_ALONE = ("name", "question")
"""What no suite takes from another: results lie in folders of its name, and its question is its own."""
OTHER_PLACES = {"path": ("hub", "subfolder", "revision"), "hub": ("path",)}
"""Of an autoencoder: whoever names one place means it in place of the other."""
NAMED: tuple[KeyPath, ...] = (("data",), ("model", "attention"))
"""Mappings that say what they are the settings of: another name, and none of the settings below holds."""


def read_suite(path: Path) -> Settings:
    """Read a suite's file over the files that it extends, and those that they extend.

    Mappings merge key by key; lists and single values replace. Of several files the later hold over the
    earlier, the suite itself over all of them. Raises SuiteError with the place of the wrong word: a file
    that is not there, files that extend each other in a circle.
    """
    return _Reader().read(path, ())


@dataclass
class _Reader:
    """Reads every file once, however many others extend it."""

    known: dict[Path, Settings] = field(default_factory=dict)

    def read(self, path: Path, around: tuple[Path, ...]) -> Settings:
        """Return a file's settings over those it extends; `around` are the files that led to it."""
        here = path.resolve()
        if here not in self.known:
            own = read_settings(path, number=len(self.known) + len(around))
            origin = own.origin((EXTENDS,))
            settings: Settings | None = None
            for name in _names(own.data.pop(EXTENDS, []), origin):
                below = self._below(name, origin, (*around, here))
                settings = below if settings is None else _over(settings, below)
            self.known[here] = own if settings is None else _over(settings, own)
        return self.known[here]

    def _below(self, name: str, origin: Origin, around: tuple[Path, ...]) -> Settings:
        path = _find(name, origin)
        if path.resolve() in around:
            files = (*around[around.index(path.resolve()) :], path.resolve())
            raise SuiteError(
                f"{origin.where}: extends: the files extend each other in a circle: "
                f"{' -> '.join(map(shown_file, files))}; take one of them out of another's extends"
            )
        found = self.read(path, around)
        left = {key: value for key, value in found.data.items() if key not in OF_THE_SUITE_ALONE}
        return Settings(left, found.origins)


def _names(written: Any, origin: Origin) -> Sequence[str]:
    names = [written] if isinstance(written, str) else written
    if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
        return names
    wrong = next((n for n in names if not isinstance(n, str)), "") if isinstance(names, list) else names
    raise SuiteError(
        f"{origin.where}: extends: must be a file or a list of files, relative to this one, or names of "
        f"shipped suites, got {show_value(wrong)}"
    )


def _find(name: str, origin: Origin) -> Path:
    """Return the file that a name stands for: beside the file that names it, or a shipped suite."""
    path = Path(os.path.normpath(origin.folder / os.path.expanduser(name)))
    if path.is_file():
        return path
    common = shipped_folder() / name  # so that a copy of a shipped suite works in any folder
    if name.startswith(BASE) and common.parent == shipped_folder() and common.is_file():
        return common
    shipped = shipped_files()
    if name in shipped:
        return shipped[name]
    kind = "is a folder, not a suite" if path.is_dir() else "no such file"
    beside = [file.name for file in path.parent.glob("*.yaml")]
    near = did_you_mean(name, [*shipped, *(str(Path(name).parent / file) for file in beside)])
    raise SuiteError(
        f"{origin.where}: extends: {name}: {kind} ({shown_file(path)}){near}; name one relative to this "
        f"file, or a shipped suite: {', '.join(shipped)}"
    )


def _over(below: Settings, above: Settings) -> Settings:
    """Return `above` over `below`, each value with the origin it had."""
    merged = Settings({}, {(): above.origins[()]})
    for side in (below, above):
        _spell_out(side)
    _refuse_overwritten(below, above)
    merged.data = _merge(below, above, merged, ())
    return merged


def _refuse_overwritten(below: Settings, above: Settings) -> None:
    """Refuse a value of `above` that the matrix or the exceptions of `below` would overwrite in silence."""
    given, varied = above.data.get("matrix"), below.data.get("matrix")
    for key, values in varied.items() if isinstance(varied, dict) else ():
        if isinstance(values, list) and not (isinstance(given, dict) and key in given):
            step = f"give its values instead, as in matrix: {{{key}: [VALUE]}}"
            _refuse_if_set(below, above, key, f"{below.origin(('matrix', key)).where} varies it; {step}")
    rules = below.data.get("exceptions") if "exceptions" not in above.data else None
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        sets = rule.get("set") if isinstance(rule, dict) else None
        for key in sets if isinstance(sets, dict) else ():
            where = below.origin(("exceptions", index, "set", key)).where
            step = "give exceptions here, too, as in exceptions: [] for none"
            _refuse_if_set(below, above, key, f"{where} sets it for some cases; {step}")


def _refuse_if_set(below: Settings, above: Settings, key: str, why: str) -> None:
    path = tuple(key.split("."))
    place: Any = above.data
    for part in path:
        if not isinstance(place, dict) or part not in place:
            return
        place = place[part]
    if above.origin(path) != below.origins.get(path):  # both have it from one file: nobody meant another
        raise SuiteError(f"{above.origin(path).where}: {key}: {why}")


def _spell_out(settings: Settings) -> None:
    """Write out names that stand for a mapping, so that mappings meet, and note where they were written."""
    short = {key: settings.data.get(key) for key in ("model", "data")}
    inner = short["model"].get("attention") if isinstance(short["model"], dict) else None
    expand_shorthand(settings.data)
    for path, name, value in (
        (("model",), "recipe", short["model"]),
        (("data",), "name", short["data"]),
        (("model", "attention"), "name", inner),
    ):
        if isinstance(value, str):
            settings.origins[*path, name] = settings.origin(path)


def _merge(below: Settings, above: Settings, merged: Settings, path: KeyPath) -> dict[str, Any]:
    """Return the mappings at `path` of both sides as one; `merged` takes the origins."""
    lower, upper = _at(below, path), _at(above, path)
    if path in NAMED and "name" in lower and upper.get("name", lower["name"]) != lower["name"]:
        lower = {}
    if path == ("data", "codec"):
        gone = {key for given in OTHER_PLACES if given in upper for key in OTHER_PLACES[given]}
        lower = {key: value for key, value in lower.items() if key not in gone}
    found: dict[str, Any] = {}
    for key in dict.fromkeys((*lower, *upper)):
        place = (*path, key)
        side = above if key in upper else below
        merged.origins[place] = side.origin(place)
        if isinstance(lower.get(key), dict) and isinstance(upper.get(key), dict):
            found[key] = _merge(below, above, merged, place)
        else:
            found[key] = upper[key] if key in upper else lower[key]
            _take_origins(side, merged, place, found[key])
    return found


def _at(settings: Settings, path: KeyPath) -> Mapping[str, Any]:
    place: Any = settings.data
    for part in path:
        place = place[part]
    return place


def _take_origins(side: Settings, merged: Settings, path: KeyPath, value: Any) -> None:
    """Note where everything inside a value was written."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        place = (*path, key)
        if place in side.origins:
            merged.origins[place] = side.origins[place]
        _take_origins(side, merged, place, inner)
