"""What `attnbench list KIND` prints; the columns stand in the order of their importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from attnbench.console.listing import Listing, listing, matching
from attnbench.contract import Family
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.plugins import BUILT_IN

FAMILIES: dict[Family, str] = {
    "softmax": "softmax: over all pairs of tokens",
    "compressed": "compressed: softmax through fewer keys or tokens",
    "sparse": "sparse: softmax over chosen pairs",
    "linear": "linear: feature maps instead of softmax",
    "sequential": "sequential: a state or a filter that runs along the tokens",
    "dynamic": "dynamic: routers choose by the input or the step",
    "other": "of no family",
}


def catalogue(kind: str, words: Sequence[str] = ()) -> Listing:
    """Return one of CATALOGUES, or its entries in which all words occur; of `backends` then with sources.

    Raises UnknownNameError for another kind, UserInputError where no entry has the words.
    """
    if kind not in CATALOGUES:
        raise UnknownNameError("kind of listing", kind, CATALOGUES)
    everything = CATALOGUES[kind]()
    if not words:
        return _on_one_screen(everything) if kind == "backends" else everything
    found = matching(everything, words)
    if not found.rows:
        sought = " and ".join(map(repr, words))
        raise UserInputError(
            f"none of {len(everything.rows)} {kind} has {sought} in its name, summary or source; "
            f"`attnbench list {kind}` shows all"
        )
    return found


def backends() -> Listing:
    """List attention backends by family, and who provides them."""
    from attnbench.plugins import registry

    rows: list[tuple[str, ...]] = []
    headings: dict[int, str] = {}
    for family, heading in FAMILIES.items():
        members = [(n, p) for n, p in registry().backends.items() if p.record.family == family]
        if members:
            headings[len(rows)] = heading
        rows += [
            (name, p.record.complexity, p.origin, p.record.summary, p.record.source) for name, p in members
        ]
    columns = ("name", "in tokens", "provided by", "summary", "source")
    return listing("attention backends", columns, rows, headings=headings)


def _on_one_screen(found: Listing) -> Listing:
    """Leave out the sources, and who provides what where nobody but attnbench provides any."""
    shown = [0, 1, 2, 3] if any(row.cells[2].text != BUILT_IN for row in found.rows) else [0, 1, 3]
    return replace(
        found,
        columns=tuple(found.columns[index] for index in shown),
        rows=tuple(replace(row, cells=tuple(row.cells[index] for index in shown)) for row in found.rows),
        notes=(
            "attnbench show NAME: options and source; attnbench list backends WORD: a search, with sources",
        ),
    )


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
