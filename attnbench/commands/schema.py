"""What `attnbench schema` prints."""

from __future__ import annotations

from typing import Any

from attnbench.errors import UserInputError


def schema(of: str) -> dict[str, Any]:
    """Return the JSON schema of suite files, or of what `profile` or `compare` writes as JSON."""
    if of == "suite":
        from attnbench.suite.loading import suite_json_schema

        return suite_json_schema()
    if of == "profile":
        from attnbench.profiling.profile import ProfileReport

        return ProfileReport.model_json_schema(mode="serialization")
    if of == "compare":
        from attnbench.report.compare import RunComparison

        return RunComparison.model_json_schema(mode="serialization")
    raise UserInputError(f"--of takes suite, profile or compare, got {of!r}")
