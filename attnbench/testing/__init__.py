"""The conformance kit: what `attnbench check` and a plugin's own tests ask of an attention backend."""

from attnbench.testing.conformance import CHECKS, check_backend, run_checks
from attnbench.testing.outcome import CheckResult, Status
from attnbench.testing.question import Check

__all__ = ["CHECKS", "Check", "CheckResult", "Status", "check_backend", "run_checks"]
