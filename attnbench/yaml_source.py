"""YAML text as plain Python values that remember where in which file each of them was written."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from attnbench.errors import SuiteError, next_step

KeyPath = tuple[str | int, ...]
NOT_YAML = (YAMLError, ValueError, RecursionError)  # ValueError: `!!int x`, 2024-13-45
MOST_VALUES = 100_000  # aliases of aliases can describe billions of values in a few lines


@dataclass(frozen=True, order=True)
class Origin:
    """Where a value was written; origins sort in reading order, file by file, overrides after all files."""

    position: tuple[int, int, int, int]
    """(0, number of the file, line, column), lines and columns from 1; (1, index, 0, 0) for an override."""
    where: str
    """`suites/quick.yaml:12:5`, or `override 'train.lr=1e-3'`."""
    folder: Path = field(compare=False)
    """What relative paths in the value start from."""

    @property
    def overrides(self) -> bool:
        """Whether it is an override's, not a file's."""
        return self.position[0] == 1


@dataclass
class Settings:
    """A tree of plain values and the origin of every key and list item in it."""

    data: dict[str, Any]
    origins: dict[KeyPath, Origin]

    def origin(self, path: KeyPath) -> Origin:
        """Return where `path` was written, or else the nearest setting around it."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def assign(self, path: KeyPath, value: Any, origin: Origin) -> None:
        """Set one value, making the mappings on the way; raises SuiteError where something else is in it."""
        place: Any = self.data
        for depth, part in enumerate(path[:-1], start=1):
            if part not in place:
                place[part] = {}
                self.origins[path[:depth]] = origin
            place = place[part]
            if not isinstance(place, dict):
                raise SuiteError(
                    f"{origin.where}: {show_path(path)} cannot be set: "
                    f"{show_path(path[:depth])} is {show_value(place)}, not a mapping"
                )
        place[path[-1]] = value
        self.origins = {known: at for known, at in self.origins.items() if known[: len(path)] != path}
        self.origins[path] = origin


def read_settings(path: Path, number: int = 0) -> Settings:
    """Read a YAML file whose top level is a mapping; raises SuiteError with file, line and column.

    `number` is the file's place among several that make one suite: their problems are listed in its order.
    """
    shown = shown_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason, step = "not UTF-8 text", "save it as UTF-8"
        if isinstance(error, OSError):
            reason, step = str(error.strerror), next_step(error, "name another file")
        raise SuiteError(f"{shown}: cannot be read: {reason}; {step}") from error
    try:
        loaded = YAML(typ="rt").load(text)
    except NOT_YAML as error:
        raise SuiteError(f"{shown}:{_yaml_problem(error)}") from error
    folder = path.parent.absolute()
    tree = _Plain(file=shown, folder=folder, number=number)
    tree.origins[()] = Origin((0, number, 1, 1), f"{shown}:1:1", folder)
    data = tree.convert(loaded, ())
    if not isinstance(data, dict) or not data:
        found = "the file is empty" if data in (None, {}) else f"got {show_value(data)}"
        raise SuiteError(f"{shown}:1:1: expected a mapping of settings, {found}")
    return Settings(data, tree.origins)


def parse_override(text: str, index: int) -> tuple[KeyPath, Any, Origin]:
    """Split `key.subkey=value` and read the value as YAML; raises SuiteError naming the override."""
    origin = Origin((1, index, 0, 0), f"override {_cut(text)!r}", Path.cwd())
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SuiteError(f"{origin.where}: expected KEY=VALUE with a dotted key, as in train.lr=1e-3")
    try:
        loaded = YAML(typ="rt").load(value)
    except NOT_YAML as error:
        raise SuiteError(f"{origin.where}: the value is not YAML: {_yaml_problem(error)}") from error
    path: KeyPath = (parts[0], ".".join(parts[1:])) if parts[0] == "matrix" and parts[1:] else tuple(parts)
    return path, _Plain(file=origin.where, folder=origin.folder).convert(loaded, path), origin


def show_path(path: KeyPath) -> str:
    """Return a path as users write it.

    >>> show_path(("matrix", "model.attention", 1, "options"))
    'matrix.model.attention[1].options'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def show_value(value: Any) -> str:
    """Return a value as YAML spells it, cut to one short line."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class _Plain:
    """Turns ruamel's nodes into plain values and notes their positions."""

    file: str
    folder: Path
    number: int = 0
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    around: set[int] = field(default_factory=set)
    count: int = 0

    def convert(self, node: Any, path: KeyPath) -> Any:
        self.count += 1
        if id(node) in self.around or self.count > MOST_VALUES:
            self._refuse(path, "aliases that contain themselves, or more values than a suite can need")
        if isinstance(node, dict | list):
            self.around.add(id(node))
            pairs = {key: self.convert(value, (*path, key)) for key, value in self._children(node, path)}
            self.around.remove(id(node))
            return pairs if isinstance(node, dict) else list(pairs.values())
        return self._scalar(node, path)

    def _children(self, node: Any, path: KeyPath) -> Iterator[tuple[Any, Any]]:
        """Yield the items of a mapping or list, their positions noted; merged keys have none of their own."""
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(node, dict) and not isinstance(key, str):
                self._refuse(path, f"the key {key!r}, which is not text; put it in quotes")
            if node.lc.data and key in node.lc.data:
                line, column = node.lc.data[key][:2]
                where = f"{self.file}:{line + 1}:{column + 1}"
                position = (0, self.number, line + 1, column + 1)
                self.origins[(*path, key)] = Origin(position, where, self.folder)
            yield (str(key) if isinstance(key, str) else key), value

    def _scalar(self, node: Any, path: KeyPath) -> Any:
        """Strip ruamel's scalar classes; the order of the tests matters, bool being an int."""
        if node is None or isinstance(node, bool):
            return node
        if type(node).__name__ == "ScalarBoolean":
            return bool(node)
        for plain in (int, float, str):
            if isinstance(node, plain):
                if isinstance(node, float) and not math.isfinite(node):
                    self._refuse(path, f"{node}; numbers must be finite")
                return plain(node)
        if isinstance(node, datetime.date):
            return node.isoformat()
        self._refuse(path, "a value with a YAML tag; tags are not supported")

    def _refuse(self, path: KeyPath, got: str) -> NoReturn:
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.origins), None)
        where = self.file if known is None else self.origins[known].where
        raise SuiteError(f"{where}: {show_path(path) or 'the file'}: got {got}")


def shown_file(path: Path) -> str:
    """Return the path relative to the working directory where it lies below it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _yaml_problem(error: Exception) -> str:
    """Return `line:column: problem` of a parser error, in one line."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"1:1: {str(error).splitlines()[0]}"
    mark = error.problem_mark
    problem = str(error.problem or error.context or "not valid YAML").strip()
    duplicate = re.match(r'found duplicate key "(.*?)"', problem)
    if duplicate:
        problem = f"duplicate key {duplicate[1]!r}; keep one of the two"
    context = f" {error.context}" if error.context and not duplicate else ""
    return f"{mark.line + 1}:{mark.column + 1}: {problem}{context}"
