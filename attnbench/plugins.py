"""Find plugins, collect their answers, and remember who answered.

Built-ins and strangers go through the same `register`. Entry points are loaded one by one, so a
stranger's broken import becomes a row of `attnbench list plugins` and not a dead tool.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pluggy

from attnbench import hookspecs
from attnbench.contract import AttentionBackend, FeatureExtractor
from attnbench.errors import NameClashError, PluginError, UnknownNameError

BUILTIN_PLUGINS = (
    # the systems of arXiv:2601.13683
    "attnbench.backends.softmax",
    "attnbench.backends.linear",
    "attnbench.backends.focused",
    "attnbench.backends.agent",
    "attnbench.backends.dydila",
    "attnbench.backends.dig",
    "attnbench.backends.pixart_sigma",
    "attnbench.backends.edit",
    "attnbench.backends.moh",
    "attnbench.backends.lit",
    "attnbench.backends.mediators",
    # the wider family
    "attnbench.backends.elu",
    "attnbench.backends.efficient",
    "attnbench.backends.performer",
    "attnbench.backends.linformer",
    "attnbench.backends.spatial_reduction",
    "attnbench.backends.differential",
    "attnbench.backends.polaformer",
    "attnbench.backends.rala",
    "attnbench.backends.mlla",
    "attnbench.backends.window",
    "attnbench.metrics.efficientnet_lite0",
    "attnbench.metrics.classifier",
    "attnbench.metrics.inception_tf",
    "attnbench.metrics.dinov2",
)

Record = TypeVar("Record", AttentionBackend, FeatureExtractor)


@dataclass(frozen=True, kw_only=True)
class PluginRow:
    """One line of `attnbench list plugins`."""

    name: str
    origin: str  # "built-in" or the distribution and its version
    status: Literal["ok", "broken"]
    provides: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Provided:
    """A record and the plugin that provides it."""

    record: Any
    plugin: str
    origin: str
    code: str = ""
    """Fingerprint of the source file that builds it: results of changed code are not reused."""


@dataclass(kw_only=True)
class Registry:
    """All plugins of one process and what they provide, by name."""

    backends: dict[str, Provided] = field(default_factory=dict)
    extractors: dict[str, Provided] = field(default_factory=dict)
    rows: list[PluginRow] = field(default_factory=list)
    hook: Any = None
    """pluggy's caller of hooks that are calls, not questions: `attnbench_training_log`."""

    def backend(self, name: str) -> AttentionBackend:
        """Return the backend called `name`; raises UnknownNameError with the nearest spelling."""
        if name not in self.backends:
            raise UnknownNameError("backend", name, self.backends)
        record: AttentionBackend = self.backends[name].record
        return record

    def extractor(self, name: str) -> FeatureExtractor:
        """Return the extractor called `name`; raises UnknownNameError with the nearest spelling."""
        if name not in self.extractors:
            raise UnknownNameError("extractor", name, self.extractors)
        record: FeatureExtractor = self.extractors[name].record
        return record


def fingerprint(function: Callable[..., Any]) -> str:
    """Return 16 hex digits of the SHA-256 of the file that defines `function`, or an empty string."""
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # a partial or a callable object: its class tells
        path = inspect.getsourcefile(type(function))
    if path is None or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _load_builtin(name: str) -> Any:
    return importlib.import_module(name)


def _records(manager: pluggy.PluginManager, plugin: Any, hook: str, kind: type[Record]) -> list[Record]:
    """Ask one plugin one question and check what it answers; generators run inside this call."""
    caller = manager.subset_hook_caller(hook, [p for p in manager.get_plugins() if p is not plugin])
    found: list[Record] = []
    for answer in caller():
        for record in answer:
            if not isinstance(record, kind):
                raise PluginError(f"{hook} must yield {kind.__name__} records, got {type(record).__name__}")
            found.append(record)
    return found


def _register(registry: Registry, manager: pluggy.PluginManager, plugin: Any, name: str, origin: str) -> None:
    """Register one plugin, collect its records, and refuse names that are taken."""
    manager.register(plugin, name=name)
    try:
        manager.check_pending()  # a misspelt hook would otherwise be silently ignored
        answers: list[tuple[dict[str, Provided], list[Any]]] = [
            (registry.backends, _records(manager, plugin, "attnbench_backends", AttentionBackend)),
            (registry.extractors, _records(manager, plugin, "attnbench_extractors", FeatureExtractor)),
        ]
    except BaseException:
        manager.unregister(plugin)
        raise
    names = []
    for table, records in answers:
        for record in records:
            if record.name in table:
                other = table[record.name]
                raise NameClashError(
                    f"{record.name!r} is provided twice: by {other.plugin} ({other.origin}) and by "
                    f"{name} ({origin}); uninstall one of them or rename its record"
                )
            code = fingerprint(getattr(record, "build", None) or record.load)
            table[record.name] = Provided(record=record, plugin=name, origin=origin, code=code)
            names.append(record.name)
    registry.rows.append(PluginRow(name=name, origin=origin, status="ok", provides=tuple(names)))


def load_plugins(
    builtins: Iterable[str] = BUILTIN_PLUGINS,
    entry_points: Callable[[], Iterable[importlib.metadata.EntryPoint]] | None = None,
) -> Registry:
    """Load built-ins, then every entry point of the group `attnbench`, one by one.

    A stranger that fails to import or misspells a hook is a broken row; a clash of names is raised,
    because choosing one of the two in silence would make results unreproducible.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(hook=manager.hook)
    for name in builtins:
        _register(registry, manager, _load_builtin(name), name, "built-in")
    group = hookspecs.ENTRY_POINT_GROUP
    found = entry_points() if entry_points else importlib.metadata.entry_points(group=group)
    for point in sorted(found, key=lambda p: (p.name, p.value)):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            _register(registry, manager, point.load(), point.name, origin)
        except NameClashError:
            raise
        except Exception as error:  # noqa: BLE001 - a stranger may raise anything at import
            reason = f"{type(error).__name__}: {error}"
            registry.rows.append(PluginRow(name=point.name, origin=origin, status="broken", reason=reason))
    return registry


@functools.cache
def registry() -> Registry:
    """Return this process's registry, loaded at first use."""
    return load_plugins()
