"""What `attnbench list KIND` prints; the columns stand in the order of their importance."""

from __future__ import annotations

from collections.abc import Callable

from attnbench.console.listing import Listing, listing


def backends() -> Listing:
    """List attention backends and who provides them."""
    from attnbench.plugins import registry

    rows = [
        (name, p.record.complexity, p.origin, p.record.summary, p.record.source)
        for name, p in registry().backends.items()
    ]
    return listing("attention backends", ("name", "in tokens", "provided by", "summary", "source"), rows)


def extractors() -> Listing:
    """List feature extractors and who provides them."""
    from attnbench.plugins import registry

    rows = [
        (
            name,
            f"FD-{p.record.suffix}" if p.record.suffix else "FID",
            p.origin,
            p.record.summary,
            p.record.source,
        )
        for name, p in registry().extractors.items()
    ]
    columns = ("name", "its Frechet distance", "provided by", "summary", "source")
    return listing("feature extractors", columns, rows)


def plugins() -> Listing:
    """List plugins, the broken ones with their reason."""
    from attnbench.plugins import registry

    rows = [
        (row.name, row.origin, row.status, ", ".join(row.provides) or row.reason) for row in registry().rows
    ]
    return listing("plugins", ("plugin", "from", "status", "provides, or why not"), rows)


def models() -> Listing:
    """List model recipes."""
    from attnbench.models.recipes import load_recipes

    rows = [
        (
            c.name,
            str(c.depth),
            str(c.dim),
            str(c.num_heads),
            c.ffn.kind,
            " ".join(table.removeprefix("table") for table in c.published),
            ", ".join(sorted(c.attention_names())),
            c.summary,
        )
        for c in load_recipes().values()
    ]
    columns = ("name", "depth", "dim", "heads", "ffn", "tables", "attention", "summary")
    title = "model recipes (tables: of arXiv:2601.13683)"
    return listing(title, columns, rows, numeric=("depth", "dim", "heads"))


def suites() -> Listing:
    """List shipped suites."""
    from attnbench.suite.files import list_suites

    rows = [(s.name, s.question, str(s.path)) for s in list_suites()]
    return listing("suites", ("name", "question", "file"), rows)


def datasets() -> Listing:
    """List data sources."""
    from attnbench.data import list_datasets

    rows = [(d.name, d.summary, d.source, d.licence) for d in list_datasets()]
    return listing("datasets", ("name", "summary", "source", "licence"), rows)


CATALOGUES: dict[str, Callable[[], Listing]] = {
    "backends": backends,
    "models": models,
    "suites": suites,
    "plugins": plugins,
    "datasets": datasets,
    "extractors": extractors,
}
"""What can be listed, by its name on the command line."""
