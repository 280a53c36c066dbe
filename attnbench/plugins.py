"""Find plugins, collect their answers, and remember who answered.

Built-ins and strangers go through the same `register`. Entry points are loaded one by one, so a
stranger's broken import becomes a row of `attnbench list plugins` and not a dead tool.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pluggy

from attnbench import hookspecs
from attnbench.contract import AttentionBackend, FeatureExtractor
from attnbench.errors import NameClashError, PluginError, UnknownNameError
from attnbench.fingerprints import builtin_fingerprint, plugin_files, plugin_fingerprint

BUILT_IN = "built-in"
IMPORT_SECONDS = 60.0
"""How long a stranger's plugin may take to import; torch is imported already."""

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
    "attnbench.backends.linfusion",
    "attnbench.backends.feature_fixation",
    "attnbench.backends.pvt_v2",
    "attnbench.backends.inline",
    "attnbench.backends.mhla",
    "attnbench.backends.clear",
    "attnbench.backends.moba",
    "attnbench.backends.vsa",
    "attnbench.backends.sla",
    "attnbench.backends.sliding_tile",
    "attnbench.backends.gated_softmax",
    "attnbench.backends.gated_deltanet",
    "attnbench.backends.kda",
    "attnbench.backends.log_linear",
    "attnbench.backends.mamba",
    "attnbench.backends.mamba2",
    "attnbench.backends.gated_conv",
    "attnbench.backends.diffussm",
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
    origin: str  # BUILT_IN or the distribution and its version
    status: Literal["ok", "broken"]
    provides: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Provided:
    """A record and the plugin that provides it."""

    record: Any
    plugin: str
    origin: str
    fingerprint: Callable[[], str] = lambda: ""
    files: frozenset[Path] = frozenset()
    """Those of a stranger's code: an error that comes out of one of them is the plugin's."""

    @functools.cached_property
    def code(self) -> str:
        """Fingerprint of the code that builds it, found when it is asked for: results of other code are not
        reused."""
        return self.fingerprint()


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
        provided = [
            (table, _provided(plugin, record, name, origin))
            for table, records in answers
            for record in records
        ]
    except BaseException:  # nothing of it shall stay
        manager.unregister(plugin)
        raise
    for table, found in provided:
        record_name = found.record.name
        if record_name in table:
            other = table[record_name]
            raise NameClashError(
                f"{record_name!r} is provided twice: by {other.plugin} ({other.origin}) and by "
                f"{name} ({origin}); uninstall one of them or rename its record"
            )
        table[record_name] = found
    names = tuple(found.record.name for _, found in provided)
    registry.rows.append(PluginRow(name=name, origin=origin, status="ok", provides=names))


def _provided(plugin: Any, record: AttentionBackend | FeatureExtractor, name: str, origin: str) -> Provided:
    """Return a record with the fingerprint of the code behind it and, of a stranger's, the files."""
    if origin == BUILT_IN:
        of_file = functools.partial(builtin_fingerprint, plugin)
        return Provided(record=record, plugin=name, origin=origin, fingerprint=of_file)
    build = record.build if isinstance(record, AttentionBackend) else record.load
    code = plugin_fingerprint(plugin, build)  # at once, as the code that was imported: files may be edited
    files = plugin_files(plugin, build)
    return Provided(record=record, plugin=name, origin=origin, fingerprint=lambda: code, files=files)


def load_plugins(
    builtins: Iterable[str] = BUILTIN_PLUGINS,
    entry_points: Callable[[], Iterable[importlib.metadata.EntryPoint]] | None = None,
    *,
    seconds: float = IMPORT_SECONDS,
) -> Registry:
    """Load built-ins, then every entry point of the group `attnbench`, one by one.

    A stranger that fails to import, exits, takes longer than `seconds` or misspells a hook is a broken row.
    A clash of two records' names is raised, because choosing one of the two in silence would make results
    unreproducible. What a plugin prints goes to stderr.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(hook=manager.hook)
    for name in builtins:
        _register(registry, manager, _load_builtin(name), name, BUILT_IN)
    group = hookspecs.ENTRY_POINT_GROUP
    found = entry_points() if entry_points else importlib.metadata.entry_points(group=group)
    for point in sorted(found, key=lambda p: (p.name, p.value, _origin(p))):
        try:
            with contextlib.redirect_stdout(sys.stderr), _at_most(seconds):
                _load_stranger(registry, manager, point)
        except (KeyboardInterrupt, NameClashError):
            raise
        except BaseException as error:  # noqa: BLE001 - a stranger may raise anything, and exit, at import
            row = PluginRow(name=point.name, origin=_origin(point), status="broken", reason=_reason(error))
            registry.rows.append(row)
    return registry


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _load_stranger(
    registry: Registry, manager: pluggy.PluginManager, point: importlib.metadata.EntryPoint
) -> None:
    """Import and register what an entry point names; raises PluginError for what is registered already."""
    from attnbench.torchvision_ops import define_missing_ops

    define_missing_ops()  # many import timm, and so torchvision
    origins = {row.name: row.origin for row in registry.rows if row.status == "ok"}
    if point.name in origins:
        raise PluginError(
            f"two entry points are called {point.name!r}, one of {origins[point.name]} and one of "
            f"{_origin(point)}; uninstall one of the two, or rename its entry point"
        )
    plugin = point.load()
    known = manager.get_name(plugin)
    if known is not None:
        raise PluginError(
            f"{point.value} is loaded already, as {known} of {origins[known]}; remove that entry point, or "
            f"{point.name} of {_origin(point)}"
        )
    _register(registry, manager, plugin, point.name, _origin(point))


class _TooSlowError(BaseException):
    """An import was interrupted; no `except Exception` of the plugin may swallow it."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt what runs inside with _TooSlowError after `seconds`.

    By SIGALRM, so that a plugin is imported in the main thread as any module is; it cannot end a call that
    never returns from C. In another thread nothing is interrupted: no signal arrives there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise _TooSlowError(f"is not imported after {seconds:g} s")

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, interrupt)
    # again every second: a bare `except:` may swallow the first
    before, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:  # somebody else's timer goes on, less what has passed
            left = max(before - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _reason(error: BaseException) -> str:
    """Say in one line why a plugin is broken."""
    if isinstance(error, _TooSlowError):
        *_, place, _ = traceback.extract_tb(error.__traceback__)  # the last is `interrupt`
        return f"{error}, still at {place.filename}:{place.lineno}; what waits there belongs into `build`"
    if isinstance(error, SystemExit):
        return f"exits when it is imported (SystemExit: {error.code}); it may not read the command line there"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@functools.cache
def registry() -> Registry:
    """Return this process's registry, loaded at first use."""
    return load_plugins()
