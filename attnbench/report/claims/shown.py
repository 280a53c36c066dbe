"""The checklist as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attnbench.report.claims.checklist import Checked
from attnbench.report.claims.finding import Evidence
from attnbench.report.markdown import escape
from attnbench.report.tables import plain, significant
from attnbench.results import Record

FORMATS = ("text", "md", "json")


class Checklist(Record):
    """What `claims --format json` writes."""

    format: Literal[1] = 1
    claims: tuple[Checked, ...]


def render(claims: Sequence[Checked], name: str) -> str:
    """Return the checklist in one of FORMATS."""
    if name == "json":
        return Checklist(claims=tuple(claims)).model_dump_json(indent=1) + "\n"
    return "\n".join(_markdown(claims) if name == "md" else _text(claims)) + "\n"


def _text(claims: Sequence[Checked]) -> list[str]:
    lines, seen = [], dict[str, str]()
    for claim in claims:
        lines += [f"{claim.claim}  {claim.words}", f"    paper ({claim.where}): {claim.paper}"]
        for finding in claim.findings:
            lines += [f"    {finding.verdict.upper()}  {plain(finding.on)}", f"        {plain(finding.why)}"]
            lines += [f"        {plain(_compared(one))}: {plain(one.said)}" for one in finding.evidence]
        lines += [f"    test: {_said_once(claim, seen)}", ""]
    return lines[:-1]


def _markdown(claims: Sequence[Checked]) -> list[str]:
    lines, seen = ["# The claims of arXiv:2601.13683 on these runs", ""], dict[str, str]()
    lines += ["| | Claim | Verdict |", "| --- | --- | --- |"]
    for claim in claims:
        verdicts = ", ".join(dict.fromkeys(claim.verdicts))
        lines.append(f"| {claim.claim} | {escape(claim.words)} | **{verdicts}** |")
    for claim in claims:
        lines += ["", f"## {claim.claim}: {escape(claim.words)}", ""]
        lines += [f"- Paper ({escape(claim.where)}): {escape(claim.paper)}."]
        lines += [f"- Test: {escape(_said_once(claim, seen))}."]
        for finding in claim.findings:
            lines += ["", f"**{finding.verdict}** on {escape(finding.on)}: {escape(finding.why)}.", ""]
            lines += [f"- {escape(_compared(one))}: {escape(one.said)}" for one in finding.evidence]
    return lines


def _said_once(claim: Checked, seen: dict[str, str]) -> str:
    """Return a claim's test, or the name of the claim that has had the same."""
    first = seen.setdefault(claim.test, claim.claim)
    return claim.test if first == claim.claim else f"as for {first}"


def _compared(one: Evidence) -> str:
    return f"{one.what}: {significant(one.ours)} against {significant(one.theirs)}"
