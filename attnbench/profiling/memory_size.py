"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from attnbench.errors import UserInputError

_UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_memory(text: str) -> float:
    """Return an amount such as `24GiB`, in MiB; units MiB, GiB (powers of 1024) and MB, GB (of 1000).

    Raises UserInputError where the unit is missing or another, or the amount is not above zero.

    >>> parse_memory("24GiB"), parse_memory("1.5 GiB"), parse_memory("512MiB")
    (24576.0, 1536.0, 512.0)
    """
    found = _AMOUNT.fullmatch(text)
    number, unit = found.groups() if found else ("", "")
    size = {name.lower(): value for name, value in _UNITS.items()}.get(unit.lower())
    if not number or size is None or not float(number) > 0:
        raise UserInputError(
            f"an amount of memory is a number above zero and a unit ({', '.join(_UNITS)}), got {text!r}; "
            "write 24GiB, for example"
        )
    return float(number) * size / 2**20
