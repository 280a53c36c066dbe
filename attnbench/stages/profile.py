"""The cost of all cases of a suite, measured together so that they meet the same machine.

Unlike the other stages this one runs once per suite: latencies are comparable only when the cases
take turns. Its key is the content of all its cases and the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from attnbench.data import class_names
from attnbench.data.mapped import map_array
from attnbench.devices import available_cores, device_name
from attnbench.models.resolution import LATENT_FACTOR
from attnbench.profiling.rows import ProfileRequest, ProfileRow, to_measurements
from attnbench.profiling.session import profile_models
from attnbench.progress import Progress
from attnbench.results import Measurement, Record, environment
from attnbench.specs import FORMAT, Case, Precision, ProfileSpec, content_hash
from attnbench.stages.latents.model_space import latent_factor
from attnbench.storage.atomic import storage_errors
from attnbench.storage.locks import alone_in
from attnbench.storage.names import PROFILE, SESSION, latent_shard
from attnbench.storage.records import read_record, write_record

PROFILE_FAILED = "profile at "
"""How the reason of a case begins whose stages are finished and whose cost could not be measured."""
CHILD = "attnbench.stages.profile_child"


class ProfileSession(Record):
    """The finished rows of one session, its file rewritten after each: `model` is the content profiled."""

    rows: list[ProfileRow] = Field(default_factory=list)


class SessionOutput(Record):
    """What is known of the costs of cases, by case id."""

    costs: dict[str, list[Measurement]] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)
    """Reasons of those with a failed row."""


def profile_cases(
    cases: Sequence[Case],
    store: Path,
    device: str,
    progress: Progress,
    notice: Callable[[str], None] = lambda text: None,
) -> SessionOutput:
    """Measure every distinct model of the cases, interleaved; finished rows are read, not measured again.

    One session at a time works in a store, since two would measure each other: `notice` hears for whom this
    one waits.
    """
    if not cases:
        return SessionOutput()
    factors = {case.id: _latent_factor(case, store) for case in cases}
    contents = {case.id: _content(case, factors[case.id]) for case in cases}
    path = _session_path(store, contents.values(), device)
    parts = _parts(cases, contents, factors)
    found = read_record(path, ProfileSession)
    note = ""
    if found is None or not _is_complete(found, parts):
        with alone_in(store / PROFILE, notice):
            lost: list[Path] = []
            found = read_record(path, ProfileSession, lost.append)  # of the one that was waited for
            if lost:
                note = f"{path.relative_to(store)} was damaged: all costs are measured again"
                notice(note)
            found = _measure(parts, found or ProfileSession(), path, device, progress, notice)
    return _output(cases, contents, found, note)


def missing_rows(cases: Sequence[Case], store: Path, device: str) -> list[tuple[Case, int]]:
    """Return what a profile of these cases has yet to measure: a case of each distinct model, and the side.

    Needs no data: runs nothing and writes nothing.
    """
    contents = {case.id: _content(case, _latent_factor(case, store)) for case in cases}
    path = _session_path(store, contents.values(), device)
    found = read_record(path, ProfileSession) or ProfileSession()
    kept = {(row.model, row.resolution) for row in found.rows if row.status == "ok"}
    distinct = {contents[case.id]: case for case in reversed(cases)}
    sides = {key: case.profile.resolutions or [case.data.image_size] for key, case in distinct.items()}
    return [(case, side) for key, case in distinct.items() for side in sides[key] if (key, side) not in kept]


def _session_path(store: Path, contents: Iterable[str], device: str) -> Path:
    """Return the file of the session of these contents on this machine."""
    key = content_hash([FORMAT, sorted(set(contents)), _machine(device)])
    return store / PROFILE / key / SESSION


def _output(
    cases: Sequence[Case], contents: dict[str, str], session: ProfileSession, note: str
) -> SessionOutput:
    """Return the session by case id: cases of several suites share a row."""
    costs: dict[str, list[Measurement]] = {}
    failures: dict[str, str] = {}
    rows_of: dict[str, list[ProfileRow]] = {}
    for row in session.rows:
        rows_of.setdefault(row.model, []).append(row)
    measured_of: dict[str, list[Measurement]] = {}
    for content in set(contents.values()):
        measured = [measurement for row in rows_of.get(content, ()) for measurement in to_measurements(row)]
        if note:
            measured.append(Measurement(name="profile_warnings", values=[1], note=note))
        measured_of[content] = _once(measured)
    for case in cases:
        costs[case.id] = measured_of[contents[case.id]]
        for row in rows_of.get(contents[case.id], ()):
            if row.status == "failed":
                failures[case.id] = f"{PROFILE_FAILED}{row.resolution} px: {row.reason}"
    return SessionOutput(costs=costs, failures=failures)


def _content(case: Case, factor: int) -> str:
    """Return the content address of a case's cost; of a grid that is not Stable Diffusion's, with its factor.

    An autoencoder's place is in the case's content, but not what its files say: costs that were measured on
    another grid are never read for these.
    """
    return case.cost_key() if factor == LATENT_FACTOR else case.cost_key(latent_factor=factor)


def _latent_factor(case: Case, store: Path) -> int:
    """Return the side of an image over that of its latents, read off those that the case was trained on."""
    shard = store / "prepare" / case.key("prepare") / latent_shard(0)
    if case.model.input == "latent" and shard.is_file():
        return case.data.image_size // int(map_array(shard).shape[-1])
    return latent_factor(case)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The models that are profiled with the same settings."""

    spec: ProfileSpec
    requests: list[ProfileRequest]


def _parts(cases: Sequence[Case], contents: dict[str, str], factors: dict[str, int]) -> list[_Part]:
    """Sort distinct models by the settings of their profile; contents and latent factors are by case id."""
    distinct = {contents[case.id]: case for case in reversed(cases)}  # guidance scales share a model
    parts: dict[str, _Part] = {}
    for key, case in distinct.items():
        settings = {
            "resolutions": case.profile.resolutions or [case.data.image_size],
            "precision": profile_precision(case),
        }
        spec = case.profile.model_copy(update=settings)
        part = parts.setdefault(content_hash(spec.model_dump(mode="json")), _Part(spec=spec, requests=[]))
        part.requests.append(
            ProfileRequest(
                label=key,
                title=case.label,
                config=case.model,
                num_classes=len(class_names(case.data)),
                latent_factor=factors[case.id],
                codec=getattr(case.data, "codec", None),
            )
        )
    return list(parts.values())


def profile_precision(case: Case) -> Precision:
    """Return the precision of a case's profile: what it says, or what its training or sampling runs in."""
    stage = case.train if case.profile.mode == "train" else case.sample
    return case.profile.precision or stage.precision


def _is_complete(session: ProfileSession, parts: Sequence[_Part]) -> bool:
    kept = {(row.model, row.resolution) for row in session.rows if row.status == "ok"}
    return all(
        (request.label, side) in kept
        for part in parts
        for request in part.requests
        for side in part.spec.resolutions or []
    )


def _measure(
    parts: Sequence[_Part],
    kept: ProfileSession,
    path: Path,
    device: str,
    progress: Progress,
    notice: Callable[[str], None],
) -> ProfileSession:
    """Measure the rows that are not kept, and keep each at `path` when it is finished.

    What failed, or took too long this time, is measured again next time: then beside none of the others,
    which its row says by its session.
    """
    rows = [row for row in kept.rows if row.status == "ok"]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: ProfileRow) -> None:
        rows.append(row)
        write_record(path, ProfileSession(rows=rows))

    for part in parts:
        finished = {(row.model, row.resolution): row for row in rows}
        threads = next((row.conditions.threads for row in rows if row.rounds), part.spec.threads)
        profile_models(
            part.requests,
            part.spec.model_copy(update={"threads": threads}),
            device=device,
            progress=progress,
            finished=finished,
            on_row=keep,
            say=notice,
            worker=CHILD,
        )
    return ProfileSession(rows=rows)


def _machine(device: str) -> list[Any]:
    """Return what a latency depends on beside the model."""
    where = environment(device)
    return [where.cpu, device_name(torch.device(device)), available_cores(), where.packages["torch"]]


def _once(measurements: list[Measurement]) -> list[Measurement]:
    """Keep one of each name: `params` comes with every resolution."""
    return list({m.name: m for m in measurements}.values())
