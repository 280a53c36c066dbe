"""Which code builds an attention: what the files behind a plugin's record compute, as one fingerprint.

It is part of the key of a training, so that results of changed code are not reused. Comments, docstrings and
what a record only says or counts are no part of it (`storage/code_meaning.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from attnbench.errors import PluginError
from attnbench.storage.code_meaning import code_sha256

LIBRARIES = sys.stdlib_module_names | {"numpy", "torch"}
"""Code that is in no key: no result is computed again because of another Python, NumPy or torch."""
PACKAGE = Path(__file__).parent
SAME_RESULTS = PACKAGE / "storage" / "same_results.json"
"""Built-in plugins whose file was rewritten without a change of results: they keep their fingerprint."""


def builtin_fingerprint(module: ModuleType) -> str:
    """Return the fingerprint of a built-in plugin: 16 hex digits of the hash of what its own file computes.

    A file that stands in `same_results.json` has the fingerprint that is written there; after any further
    change of what it computes it falls out of that table and has its own.
    """
    path = Path(str(module.__file__))
    name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    digest = code_sha256({name: path})[name][:16]
    entry = json.loads(SAME_RESULTS.read_bytes()).get(name)
    return str(entry["results"]) if entry is not None and entry["code"] == digest else digest


def plugin_fingerprint(plugin: object, build: Callable[..., Any]) -> str:
    """Return 16 hex digits of the hash of the code with which `plugin` builds an attention.

    That are every .py file of the plugin's package, its module, and the modules of everything that `build`
    consists of. Where that is one file, as in a plugin of one module, it is the hash of what that file
    computes; else that of all names and hashes. A compiled module counts with its bytes. Where files lie does
    not matter. Raises PluginError where there is no file at all.
    """
    files = _files(plugin, build)
    if not files:
        raise PluginError(
            "no file of its code can be found, so that results of changed code would be taken for its own; "
            "install it unpacked, as pip does"
        )
    digests = code_sha256({name: path for path, name in files.items()})
    if len(digests) == 1:
        return next(iter(digests.values()))[:16]
    listed = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def plugin_files(plugin: object, build: Callable[..., Any]) -> frozenset[Path]:
    """Return the files whose code `plugin_fingerprint` is of."""
    return frozenset(_files(plugin, build))


def _files(plugin: object, build: Callable[..., Any]) -> dict[Path, str]:
    """Return the files of a plugin's code with names that do not depend on where it is installed."""
    files: dict[Path, str] = {}
    home = _home(plugin if isinstance(plugin, ModuleType | type) else type(plugin))
    if home is not None:
        files |= _package_of(home[0])
    homes = [home, *(_home(part) for part in _parts(build))]
    for name, path in filter(None, homes):
        if name.partition(".")[0] not in LIBRARIES:
            files.setdefault(path, name)
    return files


def _package_of(module: str) -> dict[Path, str]:
    """Return all .py files of the outermost package around a module.

    A folder without `__init__.py` is none, since several distributions may share it: there, the .py files
    beside the module are taken.
    """
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        file = getattr(sys.modules.get(".".join(parts[:count])), "__file__", None)
        if file is not None and Path(file).stem.partition(".")[0] == "__init__":
            folder = Path(file).parent
            names = {path: path.relative_to(folder.parent) for path in folder.rglob("*.py") if path.is_file()}
            hidden = {path for path, name in names.items() if any(p.startswith(".") for p in name.parts)}
            return {path: name.as_posix() for path, name in names.items() if path not in hidden}
    file = getattr(sys.modules.get(module), "__file__", None)
    if len(parts) == 1 or file is None:
        return {}
    return {path: f"{path.parent.name}/{path.name}" for path in Path(file).parent.glob("*.py")}


def _home(part: Any) -> tuple[str, Path] | None:
    """Return name and file of the module that a function or class was written in (or of a module itself)."""
    if isinstance(part, FunctionType):
        space = part.__globals__  # a wrapper has the __module__ of what it wraps
    else:
        module = part if isinstance(part, ModuleType) else sys.modules.get(str(part.__module__))
        space = {} if module is None else vars(module)
    name, file = space.get("__name__"), space.get("__file__")
    return (name, Path(file).absolute()) if name and file and Path(file).is_file() else None


def _parts(build: object) -> Iterator[Any]:
    """Yield the functions, classes and modules that a callable is made of.

    It looks through partials, methods, decorators, closures, defaults, collections and callable objects.
    """
    waiting, seen = [build], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, MethodType):
            waiting += [part.__func__, part.__self__, *_attributes(part.__self__)]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, FunctionType):
            yield part
            waiting += [*_closure(part), *_attributes(part)]  # decorators leave `__wrapped__`
            waiting += [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
        elif isinstance(part, type | ModuleType | BuiltinFunctionType):
            yield part
        else:
            yield type(part)
            waiting += _attributes(part) if callable(part) else []


def _attributes(thing: object) -> list[Any]:
    return list(getattr(thing, "__dict__", {}).values())


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not set yet
            continue
