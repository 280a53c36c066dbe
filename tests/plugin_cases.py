"""Imagined plugins and entry points for tests of the registry."""

from __future__ import annotations

import types

from attnbench.contract import AttentionBackend, MacCount
from attnbench.hookspecs import hookimpl
from attnbench.plugins import load_plugins


def backend(name):
    return AttentionBackend(
        name=name,
        summary="",
        source="",
        build=lambda site, options: None,
        macs=lambda site, options: MacCount(),
    )


def plugin(answer, hook="attnbench_backends"):
    module = types.ModuleType("stranger")

    def implementation():
        return answer()

    implementation.__name__ = hook
    setattr(module, hook, hookimpl(implementation))
    return module


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name, load):
        self.name, self.value, self.load, self.dist = name, f"{name}_module", load, None


def load(*points):
    return load_plugins(builtins=("attnbench.backends.linear",), entry_points=lambda: list(points))
