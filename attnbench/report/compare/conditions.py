"""What must be alike for a quantity to be compared, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.report.compare.compared import Compared
from attnbench.report.compare.matching import Pair, finished
from attnbench.report.configurations import Configuration
from attnbench.results import Environment

_MACHINE = frozenset(("latency", "memory", "training", "sampling"))
_SCORES = frozenset(("quality", "loss", "inside"))
_QUALITY = frozenset(("quality",))
_SPOILED_BY: dict[str, frozenset[str]] = {
    "train.objective": _SCORES,
    "train.timestep_density": frozenset(("loss",)),
    "train.steps": _SCORES | {"train_time_s"},
    "train.batch_size": _SCORES | {"training"},
    "train.horizontal_flip": _SCORES,
    **dict.fromkeys(("sample.sampler", "sample.num_steps", "sample.guidance_scale",
                     "sample.guidance_channels"), _QUALITY | {"sampling"}),
    **dict.fromkeys(("sample.per_class", "sample.labels"), _QUALITY | {"sample_time_s"}),
    **dict.fromkeys(("evaluate.extractor", "evaluate.protocol", "evaluate.reference",
                     "evaluate.reference_images", "evaluate.kd_subsets", "evaluate.kd_subset_size",
                     "evaluate.neighbours", "evaluate.is_order"), _QUALITY),
    **dict.fromkeys(("profile.mode", "profile.batch_size"), frozenset(("latency", "memory"))),
    **dict.fromkeys(("diagnose.images", "diagnose.timesteps", "diagnose.map_images", "diagnose.queries"),
                    frozenset(("inside",))),
    "profile.scope": frozenset(("latency", "memory", "size")),
    "profile.threads": frozenset(("latency", "memory")),
}  # fmt: skip
"""Settings by what they spoil: groups of quantities, or single ones. The data are looked at apart."""
_NOT_CONTENT = ("data.path", "data.codec.path")


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """Something that differs between the two cases of a pair, and the quantities it spoils."""

    what: str
    base: str
    other: str
    spoils: frozenset[str]

    @property
    def of_machine(self) -> bool:
        """Whether it is about the machine, not about settings."""
        return self.spoils is _MACHINE

    def concerns(self, quantity: Compared) -> bool:
        """Tell whether a quantity cannot be compared because of it."""
        return bool(self.spoils & {quantity.group, quantity.name, quantity.quantity.name})

    def words(self, pair: Pair) -> str:
        """Say what it is in the base and in the other run."""
        if pair.base_letter == pair.letter:
            return f"{self.what}: {self.base} for {pair.base.label}, {self.other} for {pair.other.label}"
        return f"{self.what}: {self.base} in {pair.base_letter}, {self.other} in {pair.letter}"


def unlike(pair: Pair) -> list[Unlike]:
    """Return what is not alike in hardware and settings; n is of each quantity: `unlike_n`."""
    found = []
    for what, read in _MACHINES.items():
        ours, theirs = (_distinct(read(r.environment) for r in finished(c)) for c in (pair.base, pair.other))
        if ours != theirs and ours and theirs:
            found.append(Unlike(what=what, base=ours, other=theirs, spoils=_MACHINE))
    paths_alike = _same_floors(pair)
    for name, a, b in pair.differing:
        spoils = _SCORES if name.startswith("data.") else _SPOILED_BY.get(name)
        if spoils is None or (name in _NOT_CONTENT and paths_alike):
            continue
        found.append(Unlike(what=name, base=a, other=b, spoils=spoils))
    return found


def unlike_n(pair: Pair, quantity: Compared) -> list[Unlike]:
    """Return the difference in the images behind a quality metric, or in what a map is of, if any."""
    if quantity.group not in ("quality", "inside"):
        return []
    of_maps = quantity.group == "inside"
    ours, theirs = (
        _distinct(m.note if of_maps else f"{m.n:,}" for m in c.measurements(quantity.name) if of_maps or m.n)
        for c in (pair.base, pair.other)
    )
    if ours == theirs or not (ours and theirs):
        return []
    what = f"the map of {quantity.name}" if of_maps else f"n of {quantity.name}"
    return [Unlike(what=what, base=ours, other=theirs, spoils=frozenset((quantity.name,)))]


def said_apart(pairs: Sequence[Pair]) -> list[str]:
    """Return the other settings, the code and the packages that differ, each once with its cases."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        differing = pair.differing
        another = {name.removesuffix("name") for name, _, _ in differing if name.endswith("attention.name")}
        for name, a, b in differing:
            if any(name.startswith(f"{prefix}options.") for prefix in another):
                continue  # of another attention all options are others
            if name not in _SPOILED_BY and not name.startswith("data."):
                known = Unlike(what=name, base=a, other=b, spoils=frozenset())
                found.setdefault(known.words(pair), []).append(pair.label)
        for name in pair.changed_code:
            found.setdefault(f"the source of {name} is another one", []).append(pair.label)
        for name, ours, theirs in _packages(pair):
            known = Unlike(what=name, base=ours, other=theirs, spoils=frozenset())
            found.setdefault(known.words(pair), []).append(pair.label)
    return [
        said if len(labels) == len(pairs) else f"{said} ({', '.join(labels)})"
        for said, labels in found.items()
    ]


_MACHINES = {
    "device": lambda place: place.device,
    "cpu": lambda place: place.cpu,
    "threads": lambda place: str(place.threads),
}


def _packages(pair: Pair) -> Iterable[tuple[str, str, str]]:
    ours, theirs = ([r.environment for r in c.results] for c in (pair.base, pair.other))
    for name in dict.fromkeys(name for place in (*ours, *theirs) for name in place.packages):
        a, b = _versions(ours, name), _versions(theirs, name)
        if a != b:
            yield name, a, b


def _versions(places: Sequence[Environment], name: str) -> str:
    return _distinct(place.packages.get(name, "none") for place in places)


def _same_floors(pair: Pair) -> bool:
    """Tell whether real images score the same in both: then the data are, wherever they lie."""
    ours, theirs = (_floors(c) for c in (pair.base, pair.other))
    return bool(ours) and ours == theirs


def _floors(configuration: Configuration) -> dict[str, list[float]]:
    return {
        m.name: m.values
        for result in finished(configuration)[:1]
        for m in result.measurements
        if m.name.startswith("floor:")
    }


def _distinct(values: Iterable[str]) -> str:
    return " and ".join(sorted(set(values)))
