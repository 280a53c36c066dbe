"""The cost of all cases of a suite, measured together so that they meet the same machine.

Unlike the other stages this one runs once per suite: latencies are comparable only when the cases
take turns. Its key is the content of all its cases and the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from attnbench.data import class_names
from attnbench.data.mapped import map_array
from attnbench.devices import device_name
from attnbench.models.resolution import LATENT_FACTOR
from attnbench.profiling.rows import ProfileRequest, to_measurements
from attnbench.profiling.session import profile_models
from attnbench.progress import Progress
from attnbench.results import Measurement, Record, environment
from attnbench.specs import FORMAT, Case, ProfileSpec, content_hash
from attnbench.stages.latents.model_space import latent_factor
from attnbench.storage.atomic import storage_errors
from attnbench.storage.locks import alone_in
from attnbench.storage.names import PROFILE, SESSION, latent_shard
from attnbench.storage.records import read_record, write_record


class SessionOutput(Record):
    """What one profiling session found: by case id, in its file by the content that was profiled."""

    costs: dict[str, list[Measurement]] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)
    """Reasons of those with a failed row."""

    def of_cases(self, contents: dict[str, str]) -> SessionOutput:
        """Return the same by case id, given the content of each: cases of several suites share a session."""
        return SessionOutput(
            costs={case_id: self.costs[key] for case_id, key in contents.items()},
            failures={
                case_id: self.failures[key] for case_id, key in contents.items() if key in self.failures
            },
        )


def profile_cases(
    cases: Sequence[Case],
    store: Path,
    device: str,
    progress: Progress,
    notice: Callable[[str], None] = lambda text: None,
) -> SessionOutput:
    """Measure every distinct model of the cases, interleaved; a finished session is read.

    One session at a time works in a store, since two would measure each other: `notice` hears for whom this
    one waits.
    """
    if not cases:
        return SessionOutput()
    factors = {case.id: _latent_factor(case, store) for case in cases}
    contents = {case.id: _content(case, factors[case.id]) for case in cases}
    folder = store / PROFILE / content_hash([FORMAT, sorted(set(contents.values())), _machine(device)])
    path = folder / SESSION
    found = read_record(path, SessionOutput)
    if found is None:
        with alone_in(store / PROFILE, notice):
            lost: list[Path] = []
            found = read_record(path, SessionOutput, lost.append)  # of the one that was waited for
            if found is None:
                note = f"{path.relative_to(store)} was damaged: all costs are measured again" if lost else ""
                if note:
                    notice(note)
                found = _measure(cases, contents, factors, path, device, progress, note)
    return found.of_cases(contents)


def _content(case: Case, factor: int) -> str:
    """Return the content address of a case's cost; of a grid that is not Stable Diffusion's, with its factor.

    An autoencoder's place is in the case's content, but not what its files say: costs that were measured on
    another grid are never read for these.
    """
    content = case.profile_content()
    return content_hash(content if factor == LATENT_FACTOR else {**content, "latent_factor": factor})


def _latent_factor(case: Case, store: Path) -> int:
    """Return the side of an image over that of its latents, read off those that the case was trained on."""
    shard = store / "prepare" / case.key("prepare") / latent_shard(0)
    if case.model.input == "latent" and shard.is_file():
        return case.data.image_size // int(map_array(shard).shape[-1])
    return latent_factor(case)


def _measure(
    cases: Sequence[Case],
    contents: dict[str, str],
    factors: dict[str, int],
    path: Path,
    device: str,
    progress: Progress,
    note: str,
) -> SessionOutput:
    """Measure the models of cases, whose contents and latent factors are given by case id; keep it at `path`.

    A session with a row that failed is not kept. `note` is what a reader of all its costs must know.
    """
    distinct = {contents[case.id]: case for case in reversed(cases)}  # guidance scales share a model
    sessions: dict[str, tuple[ProfileSpec, list[ProfileRequest]]] = {}
    for key, case in distinct.items():
        resolutions = case.profile.resolutions or [case.data.image_size]
        spec = case.profile.model_copy(update={"resolutions": resolutions})
        _, requests = sessions.setdefault(content_hash(spec.model_dump(mode="json")), (spec, []))
        num_classes = len(class_names(case.data))
        requests.append(
            ProfileRequest(
                label=key, config=case.model, num_classes=num_classes, latent_factor=factors[case.id]
            )
        )
    found: dict[str, list[Measurement]] = {}
    failed: dict[str, str] = {}
    complete = True
    for spec, requests in sessions.values():
        for row in profile_models(requests, spec, device=device, progress=progress):
            found.setdefault(row.model, []).extend(to_measurements(row))
            complete = complete and row.status == "ok"
            if row.status == "failed":
                failed[row.model] = f"profile at {row.resolution} px: {row.reason}"
    if note:
        warning = Measurement(name="profile_warnings", values=[1], note=note)
        found = {key: [*rows, warning] for key, rows in found.items()}
    output = SessionOutput(costs={key: _once(rows) for key, rows in found.items()}, failures=failed)
    if complete:  # what failed, or took too long this time, is measured again next time
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, output)
    return output


def _machine(device: str) -> list[Any]:
    """Return what a latency depends on beside the model."""
    where = environment(device)
    return [where.cpu, device_name(torch.device(device)), torch.get_num_threads(), where.packages["torch"]]


def _once(measurements: list[Measurement]) -> list[Measurement]:
    """Keep one of each name: `params` comes with every resolution."""
    return list({m.name: m for m in measurements}.values())
