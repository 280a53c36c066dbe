"""Orders that depend on names alone, so that splits and crops are the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def name_hash(name: str) -> int:
    """Return the first 64 bits of the SHA-256 of a name.

    >>> f"{name_hash('cat/1.png'):016x}"
    '6a3b843cf66c4612'
    """
    content = name.encode(errors="surrogateescape")  # a file's name need not be UTF-8
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def hash_order(names: Iterable[str]) -> list[int]:
    """Return the positions of `names` sorted by hash: a shuffle without a random number generator."""
    keys = [(name_hash(name), name) for name in names]
    return sorted(range(len(keys)), key=keys.__getitem__)
