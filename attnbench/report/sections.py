"""The facts around the tables: at a glance, environment, settings, definitions, warnings."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench.report.configurations import label_without_seed
from attnbench.report.quantities import (
    ACCURACY,
    LATENCY,
    MEMORY,
    NOTED,
    SIZE,
    STEP_TIME,
    TRAINING,
    is_quality,
    quality_quantities,
    separability_quantities,
    unresolved,
)
from attnbench.report.rank_agreement import rank_agreements
from attnbench.report.tables import MISSING, Column, Row, Table, plain, text_cell
from attnbench.results import Environment, Result
from attnbench.specs import TrainSpec
from attnbench.storage.run_folders import RunRecord

WARNED_BY = ("init_from", "steps", "lr", "warmup_steps", "ema_decay", "ema_warmup", "extra_ema_decays")
_MOST_NAMED = 12  # rows in a sentence
FEW_IMAGES = 10_000  # below it, distances are known to be dominated by the sample-size bias


def at_a_glance(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return the few facts a reader wants first, as (name, value)."""
    counts = Counter(result.status for result in results)
    states = ", ".join(f"{counts[s]} {s}" for s in ("ok", "failed", "skipped") if counts[s])
    facts = [
        ("Cases", f"{len(results)} ({states})"),
        ("Hardware", _distinct(_hardware(r.environment) for r in results)),
        ("Torch", _distinct(r.environment.packages.get("torch", "not installed") for r in results)),
    ]
    images = {f"{m.n:,}" for r in results for m in r.measurements if is_quality(m.name) and m.n}
    if images:
        facts.append(("Samples per case", " / ".join(sorted(images))))
    facts += rank_agreements(results)
    if seeds := seeds_of(results):
        facts.append(("Seed" if len(seeds) == 1 else "Seeds", ", ".join(seeds)))
    dates = sorted(r.created[:10] for r in results if r.created)
    if dates:
        facts.append(("Date", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"))
    return [(name, plain(value)) for name, value in facts]


def seeds_of(results: Sequence[Result]) -> list[str]:
    """Return the seeds of all cases, each once."""
    return list(dict.fromkeys(str(r.case["seed"]) for r in results if "seed" in r.case))


def warnings(results: Sequence[Result]) -> list[str]:
    """Return what a reader must know before trusting the tables."""
    found = []
    counts = sorted({m.n for r in results for m in r.measurements if is_quality(m.name) and m.n})
    if counts and counts[0] < FEW_IMAGES:
        found.append(
            f"n = {counts[0]:,} images, fewer than {FEW_IMAGES:,}: Frechet distances are biased upwards and "
            "compare only with distances of the same n, the same reference and the same feature network."
        )
    if len(counts) > 1:
        found.append("The cases were scored with different n: their distances do not compare.")
    suffixed = [q.name for q in quality_quantities(results) if "-" in q.name]
    if suffixed:
        found.append(
            f"{', '.join(suffixed)}: a name with a suffix is computed on another feature network than the "
            "literature's Inception and compares with no published number."
        )
    if len(distinct_environments(results)) > 1:
        found.append(
            "Cases ran in different environments (see there): their times and memory do not compare."
        )
    if len(seeds_of(results)) == 1:
        found.append("One seed per case: the spread between seeds is unknown.")
    excuses: dict[str, dict[str, None]] = {}
    for result in results:
        for excuse in result.case.get("exceptions", ()):
            excuses.setdefault(excuse, {})[label_without_seed(result)] = None
    found += [
        f"Set for some cases only: {excuse}: {_some(list(labels))}." for excuse, labels in excuses.items()
    ]
    for warning, labels in _settings_warned_of(results).items():
        found.append(f"{warning}: {_some(list(labels))}.")
    left_out = {m.note for r in results for m in r.measurements if m.name == "unreadable_images"}
    found += [f"Files that failed to open were left out: {names}" for names in sorted(left_out)]
    noted = {
        f"{r.label}: {m.note}." for r in results for m in r.measurements if m.name in NOTED[1:] and m.note
    }
    found += sorted(noted)
    if any(r.environment.git_dirty for r in results):
        found.append("The working tree held uncommitted changes.")
    return [plain(warning) for warning in found]


def _some(labels: Sequence[str]) -> str:
    """Return labels for a sentence: all, or of many the first."""
    if len(labels) <= _MOST_NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[: _MOST_NAMED - 1])} and {len(labels) - _MOST_NAMED + 1} more"


def _settings_warned_of(results: Sequence[Result]) -> dict[str, dict[str, None]]:
    """Return what the settings of a training ruin without an error, each with what it is for."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        said = {key: value for key, value in result.case.get("train", {}).items() if key in WARNED_BY}
        for warning in TrainSpec.model_validate_json(json.dumps(said)).warnings():
            found.setdefault(warning, {})[label_without_seed(result)] = None
    return found


def definitions(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return how each shown quantity is defined and what the stages noted about it."""
    names = {unresolved(m.name) for r in results for m in r.measurements}
    qualities = (*quality_quantities(results), ACCURACY, *separability_quantities(results))
    quantities = dict.fromkeys((*SIZE, *qualities, LATENCY, *MEMORY, STEP_TIME, *TRAINING))
    known = [(q.title, q.definition) for q in quantities if q.name in names and q.definition]
    return [(plain(name), plain(text)) for name, text in (*known, *_stage_notes(results))]


def _stage_notes(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return what stages noted, as (measurements, note); a note of some cases only names them."""
    names: dict[str, dict[str, None]] = {}
    labels: dict[str, dict[str, None]] = {}
    having: dict[str, set[str]] = {}
    for result in results:
        for measured in result.measurements:
            name = unresolved(measured.name)
            having.setdefault(name, set()).add(result.label)
            if measured.note and measured.values:
                names.setdefault(measured.note, {})[name] = None
                labels.setdefault(measured.note, {})[result.label] = None
    notes = []
    for note, titles in names.items():
        concerned = set().union(*(having[name] for name in titles))
        suffix = "" if concerned == set(labels[note]) else f" ({', '.join(labels[note])})"
        notes.append((", ".join(titles), note + suffix))
    return notes


def distinct_environments(results: Sequence[Result]) -> list[Environment]:
    """Return the environments the cases ran in, each once."""
    return list({r.environment.model_dump_json(): r.environment for r in results}.values())


def environment_table(results: Sequence[Result]) -> Table:
    """Return where the cases ran: one column for each distinct environment."""
    environments = distinct_environments(results)
    described = [_describe(environment) for environment in environments]
    columns = [Column(title="Environment", numeric=False)]
    labels: dict[str, list[str]] = {}
    for result in results if len(environments) > 1 else ():
        labels.setdefault(result.environment.model_dump_json(), []).append(result.label)
    for environment in environments:
        title = plain(", ".join(labels[environment.model_dump_json()])) if labels else "Value"
        columns.append(Column(title=title, numeric=False))
    names = dict.fromkeys(name for facts in described for name in facts)
    rows = (Row(cells=(text_cell(n), *(text_cell(f.get(n, MISSING)) for f in described))) for n in names)
    return Table(title="Environment", columns=tuple(columns), rows=tuple(rows))


def reproduce_command(results: Sequence[Result], record: RunRecord | None = None) -> str:
    """Return what a shell runs to get the same cases again, from any folder, and which code computed them.

    Without a record (a run of an earlier version) only the suite's name is known.
    """
    lines = list(dict.fromkeys(_computed_by(result.environment) for result in results))
    if record is None:
        suites = dict.fromkeys(plain(result.suite) for result in results)
        lines.append("# of this run only the suite's name was kept, not its overrides")
        return "\n".join([*lines, " && ".join(f"attnbench run {_quoted(suite)}" for suite in suites)])
    words = ["attnbench", "run", record.source]
    words += [word for text in record.overrides for word in ("-o", text)]
    words += [word for pattern in record.chosen for word in ("--case", pattern)]
    words += ["--seeds", str(record.seeds)] if record.seeds is not None else []
    words += ["--device", record.device] if record.device != "auto" else []
    return "\n".join([*lines, " ".join(map(_quoted, words))])


def _computed_by(environment: Environment) -> str:
    version = environment.packages.get("attnbench", "of an unknown version")
    commit = f"commit {environment.git_commit}" if environment.git_commit else "not from a git checkout"
    dirty = ", with uncommitted changes" if environment.git_dirty else ""
    return plain(f"# computed by attnbench {version}, {commit}{dirty}")


def _quoted(word: str) -> str:
    """Quote a word for a shell; one that cannot be shown by bytes, as bash, zsh and ksh read them."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (
        c if c.isprintable() and c not in "'\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
        for c in word
    )
    return f"$'{''.join(shown)}'"


def _distinct(values: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _hardware(environment: Environment) -> str:
    device = "" if environment.device == "cpu" else f"{environment.device}, "
    threads = f"{environment.threads} thread{'s' if environment.threads != 1 else ''}"
    return f"{device}{environment.cpu}, {threads}"


def _describe(environment: Environment) -> dict[str, str]:
    commit = environment.git_commit or "not a git checkout"
    return {
        "Device": environment.device,
        "CPU": f"{environment.cpu} ({environment.cpu_count} logical cores, {environment.threads} used)",
        "Memory": f"{environment.memory_gib} GiB",
        "Platform": environment.platform,
        "Python": environment.python,
        **environment.packages,
        "Git commit": commit + (", with uncommitted changes" if environment.git_dirty else ""),
        **({"Note": environment.note} if environment.note else {}),
    }
