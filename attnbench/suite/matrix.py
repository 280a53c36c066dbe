"""The `matrix` of a suite: axes of values, and the cases their cartesian product makes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from attnbench.errors import did_you_mean
from attnbench.problems import Problem, allowed_keys
from attnbench.specs import AttentionSpec, ModelConfig
from attnbench.yaml_source import KeyPath, Settings, show_path, show_value

TEACHER = ("train", "teacher")
SECTIONS = ("model", "data", "train", "sample", "evaluate", "profile")


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes."""

    target: KeyPath
    """The setting in a case, such as ("model", "attention")."""
    written: KeyPath
    """Where its list of values stands in the suite."""
    values: tuple[Any, ...]
    short: str
    """Its name in labels and reports: the last part of the key, or all of it where two would be equal."""


@dataclass
class Draft:
    """One case before it is read: its place on the axes, and what exceptions set there."""

    points: tuple[tuple[Axis, int], ...]
    sets: list[tuple[KeyPath, Any]] = field(default_factory=list)
    """What exceptions set, in their order."""
    excepted: dict[KeyPath, KeyPath] = field(default_factory=dict)
    """Settings that an exception set, and where it stands in the suite."""
    exceptions: list[int] = field(default_factory=list)
    """Places in `exceptions` of those that hold for this case."""

    def written(self, path: KeyPath) -> KeyPath:
        """Return where in the suite the setting at `path` of this case was written."""
        for target, place in self.excepted.items():
            if path[: len(target)] == target:
                return (*place, *path[len(target) :])
        for axis, index in self.points:
            if path[: len(axis.target)] == axis.target:
                inside = path[len(axis.target) :]
                return (*axis.written, index, *inside)
        return path

    def place_in(self, section: str) -> tuple[Any, ...]:
        """Return what tells this case's settings in a section, or its seed, from those of other cases."""
        on_axes = [index for axis, index in self.points if axis.target[0] == section]
        rules = {place[1] for target, place in self.excepted.items() if target[0] == section}
        return (*on_axes, "exceptions", *sorted(rules)) if rules else tuple(on_axes)

    def written_out(self, settings: Settings) -> tuple[dict[str, Any], list[Problem]]:
        """Return a copy of a suite's settings with this case's in it, and what could not be set."""
        data: dict[str, Any] = copy.deepcopy({k: v for k, v in settings.data.items() if k != "matrix"})
        if "matrix" in settings.data:  # its keys and lists have been checked
            data["matrix"] = {} if isinstance(settings.data["matrix"], dict) else settings.data["matrix"]
        problems: list[Problem] = []
        for target, value in [(axis.target, axis.values[index]) for axis, index in self.points]:
            problems += assign(data, target, copy.deepcopy(value))
        expand_shorthand(data)
        for target, value in self.sets:
            problems += assign(data, target, copy.deepcopy(value))
        return data, problems


def read_axes(settings: Settings, schema: type[BaseModel]) -> tuple[list[Axis], list[Problem]]:
    """Return the axes of `matrix` in their order, then `seed` where it is a list; and what is wrong."""
    matrix = settings.data.get("matrix", {})
    axes: list[Axis] = []
    problems: list[Problem] = []
    for key, values in matrix.items() if isinstance(matrix, dict) else ():
        target, written = tuple(key.split(".")), ("matrix", key)
        clash = next((axis for axis in axes if overlap(axis.target, target)), None)
        if not names_a_setting(schema, target):
            problems.append(Problem(written, no_setting(schema, key)))
        elif not isinstance(values, list) or not values:
            problems.append(Problem(written, f"must be a list of values, got {_shown_list(values)}"))
        elif clash:
            problems.append(Problem(written, f"varies a part of what {show_path(clash.written)} varies"))
        else:
            axes.append(Axis(target, written, tuple(values), key))
    seeds = settings.data.get("seed")
    if isinstance(seeds, list) and seeds:
        # a list in the list would be taken for the seeds of a case
        nested = [index for index, seed in enumerate(seeds) if isinstance(seed, list)]
        problems += [Problem(("seed", index), "must be an integer, got a list") for index in nested]
        sound = tuple(0 if isinstance(seed, list) else seed for seed in seeds)
        axes.append(Axis(("seed",), ("seed",), sound, "seed"))
    return _with_short_names(axes), problems


def drafts(axes: Iterable[Axis]) -> Iterator[Draft]:
    """Yield the cartesian product in order, the last axis fastest."""
    points = ([(axis, index) for index in range(len(axis.values))] for axis in axes)
    return (Draft(chosen) for chosen in itertools.product(*points))


def expand_shorthand(data: dict[str, Any]) -> None:
    """Write out what stands for a whole mapping: a recipe's name, a dataset's, an attention's, and `true`."""
    for place, section, key in ((data, "model", "recipe"), (data, "data", "name")):
        if isinstance(place.get(section), str):
            place[section] = {key: place[section]}
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("attention"), str):
        model["attention"] = {"name": model["attention"]}
    if isinstance(data.get("diagnose"), bool):
        data["diagnose"] = {} if data["diagnose"] else None


class Coordinates:
    """The coordinates of a suite's cases as reports show them; what many cases share is found once."""

    def __init__(self) -> None:
        self._shown: dict[tuple[KeyPath, int, int, bool], str] = {}
        self._models: dict[int, ModelConfig] = {}  # held, so that an id stays that of one model

    def axes_of(self, draft: Draft, model: ModelConfig, *, starts: bool) -> dict[str, str]:
        """Return the coordinates of a case; `starts` says whether it begins with given weights."""
        self._models[id(model)] = model
        return {axis.short: self._of(axis, index, model, starts) for axis, index in draft.points}

    def _of(self, axis: Axis, index: int, model: ModelConfig, starts: bool) -> str:
        known_by = (axis.target, index, id(model), starts)
        if known_by not in self._shown:
            value = axis.values[index]
            untaught = "no teacher" if starts else "from scratch"
            shown = untaught if axis.target == TEACHER and value is None else _shown(axis, value, model)
            self._shown[known_by] = shown
        return self._shown[known_by]


def label_of(draft: Draft, model: ModelConfig, shown: Mapping[str, str]) -> str:
    """Return one readable name of a case, such as `dit-s · guidance_scale=4.0`, from its coordinates."""
    parts = [
        shown[axis.short] if _is_name(axis)
        else f"{axis.short}={shown[axis.short]}"
        for axis, _ in draft.points
    ]  # fmt: skip
    return " · ".join(parts) or model.name


def _is_name(axis: Axis) -> bool:
    """Whether the values name themselves, so that `attention=softmax` would say nothing more."""
    if axis.target[0] not in ("model", "data"):
        return axis.target == TEACHER
    return len(axis.target) == 1 or axis.target[-1] in ("recipe", "attention", "name")


def assign(data: dict[str, Any], target: KeyPath, value: Any) -> list[Problem]:
    """Set one setting of a case; where something else is in the way, that is a problem of the case."""
    place: Any = data
    expand_shorthand(place)
    for depth, part in enumerate(target[:-1], start=1):
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            around = show_path(target[:depth])
            return [Problem(target, f"cannot be varied: {around} is {show_value(place)}, not a mapping")]
    place[target[-1]] = value
    return []


def names_a_setting(schema: type[BaseModel], target: KeyPath) -> bool:
    if target[0] not in SECTIONS:
        return False
    options = ("model", "attention", "options")  # their names are the backend's: checked with its values
    if target[:3] == options:
        return True
    return all(target[n] in allowed_keys(schema, target[:n]) for n in range(1, len(target)))


def no_setting(schema: type[BaseModel], key: str) -> str:
    every = {f"{section}.{name}" for section in SECTIONS for name in allowed_keys(schema, (section,))}
    section = key.split(".")[0]
    allowed = {name for name in every if name.startswith(f"{section}.")} or set(SECTIONS)
    return f"names no setting{did_you_mean(key, every)}; allowed: {', '.join(sorted(allowed))}"


def overlap(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _with_short_names(axes: list[Axis]) -> list[Axis]:
    last = [str(axis.target[-1]) for axis in axes]
    return [
        Axis(axis.target, axis.written, axis.values, axis.short if last.count(name) > 1 else name)
        for axis, name in zip(axes, last, strict=True)
    ]


def _shown_list(values: Any) -> str:
    return "an empty list" if values == [] else show_value(values)


def _shown(axis: Axis, value: Any, model: ModelConfig) -> str:
    if axis.target == ("model", "attention"):
        several = model.attention if isinstance(model.attention, list) else [model.attention]
        runs = [(title, len(list(same))) for title, same in itertools.groupby(several, _title)]
        return " + ".join(title if len(several) == 1 else f"{count}x {title}" for title, count in runs)
    if axis.target == TEACHER and isinstance(value, dict):
        return str(value.get("label") or "converted")
    return _plain(value)


def _title(attention: AttentionSpec) -> str:
    return attention.title


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        name = value.get("recipe", value.get("name"))
        rest = ", ".join(f"{k}={_plain(v)}" for k, v in value.items() if k not in ("recipe", "name"))
        return f"{name}({rest})" if name and rest else str(name or rest)
    if isinstance(value, list):
        return ",".join(_plain(item) for item in value)
    return value if isinstance(value, str) else show_value(value)
