"""A table as JSON: everything a neutral table holds, so that it can be read back whole."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from attnbench.report.tables import Table

FORMAT = 1
_TABLE: TypeAdapter[Table] = TypeAdapter(Table)


def render(table: Table) -> str:
    """Return the table as JSON; a value that is not finite is null, its text says which."""
    content: dict[str, Any] = json.loads(_TABLE.dump_json(table))
    return json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(text: str) -> Table:
    """Return the table that `render` wrote; raises ValueError where it is none."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"no table of format {FORMAT}")
    return _TABLE.validate_python(content)


def schema() -> dict[str, Any]:
    """Return the JSON schema of what `render` writes."""
    found = _TABLE.json_schema(mode="serialization")
    found["properties"]["format"] = {"const": FORMAT}
    found["required"] = ["format", *found["required"]]
    return found
