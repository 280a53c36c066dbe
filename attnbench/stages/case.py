"""One case of a suite: its stages in order, and the same as a process of its own.

`python -m attnbench.stages.case` is asked for one case and replies with progress, then with one result. A
case is idempotent: run again, it continues where it was killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from threadpoolctl import threadpool_limits

from attnbench.devices import device_name
from attnbench.errors import AttnbenchError, UnsupportedError
from attnbench.processes import ParentProcess
from attnbench.results import Environment, Measurement, Result, environment, timestamp
from attnbench.specs import Case, UserImages, content_hash
from attnbench.stages import failures
from attnbench.stages.interrupts import Stopped
from attnbench.stages.prepare import dataset_of
from attnbench.storage.locks import alone_at_once, alone_in
from attnbench.storage.names import CLAIMS, ENVIRONMENT, GROUND
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import (
    EVERY_STAGE,
    NOTICE,
    STAGE_ENDED,
    Host,
    Stage,
    StageOutput,
    Workspace,
    read_output,
    stages_of,
)

TRAINED_HERE = "digits-cnn"  # the feature network that is a small CNN, trained on some of the dataset


def run_case(case: Case, workspace: Workspace, note: str = "", *, beside_others: bool = False) -> Result:
    """Run every stage of a case; an error becomes a failed or skipped result with its reason.

    `note` stands in the result's environment: under what conditions this process works. Where cases of the
    same data run beside this one, what all of them are scored with is made early, by one.
    """
    where = environment(device_name(workspace.device), torch.get_num_threads())
    where = where.model_copy(update={"note": note})
    outputs: list[StageOutput] = []
    stage: Stage = "prepare"
    try:
        for stage in stages_of(case):
            if beside_others and stage == "evaluate":
                _lay_ground(case, workspace, waits=True)
            outputs.append(_run_stage(case, stage, workspace))
            if beside_others and stage == "prepare" and _is_scored_with_little(case):
                with contextlib.suppress(Exception, SystemExit):  # what fails here, `evaluate` meets and says
                    _lay_ground(case, workspace, waits=False)
        where = _environment_of(workspace.folder("evaluate", case), where, workspace)
    except UnsupportedError as error:
        return _result(case, where, outputs, "skipped", str(error))
    except Stopped:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything; other cases go on
        if not isinstance(error, AttnbenchError):
            traceback.print_exc()
        reason = failures.in_words(error, stage, workspace.root / stage / case.key(stage))
        return _result(case, where, outputs, "failed", reason)
    return _result(case, where, outputs, "ok", "", workspace.notes)


def _run_stage(case: Case, stage: Stage, workspace: Workspace) -> StageOutput:
    """Run one stage, or read what it has finished before; tell of its end where it was run."""
    folder = workspace.root / stage / case.key(stage)
    was_finished, began = read_output(folder) is not None, time.monotonic()
    output: StageOutput = importlib.import_module(f"attnbench.stages.{stage}").run(case, workspace)
    failures.forget(folder)
    if not was_finished:
        milliseconds = round(1000 * (time.monotonic() - began))
        workspace.report(STAGE_ENDED, milliseconds, 0, _what_was_done(case, stage, output))
    return output


def _lay_ground(case: Case, workspace: Workspace, *, waits: bool) -> None:
    """Make the networks and the reference that all cases of the same data are scored with, unless they are.

    One process at a time does. Where it takes seconds, the first one that finds nobody at it does it before
    its training, so that nobody has to wait. What it warns of is noted as the stage would.
    """
    shared = [case.data.model_dump(mode="json"), case.evaluate.model_dump(mode="json")]
    folder = workspace.root / CLAIMS / f"evaluation-{content_hash(shared)}"
    if (folder / GROUND).exists() or _is_finished(case, "evaluate", workspace.root):
        return

    def tell(text: str) -> None:
        workspace.report(NOTICE, 0, 0, text)

    with alone_in(folder, tell) if waits else alone_at_once(folder, tell) as is_mine:
        if is_mine is False or (folder / GROUND).exists():
            return
        from attnbench.evaluation.dataset_images import dataset_images
        from attnbench.stages.evaluate import Evaluation

        dataset = dataset_of(case, workspace)
        real = dataset_images(dataset, "train")  # nobody looks at it: the samples are not there yet
        evaluation = Evaluation(case=case, workspace=workspace, dataset=dataset, samples=real)
        for made_when_read in ("reference", *(["classifier"] if case.evaluate.class_accuracy else [])):
            getattr(evaluation, made_when_read)
        workspace.notes.extend(dict.fromkeys([*evaluation.warnings, *evaluation.scorer.warnings]))
        (folder / GROUND).touch()


def _is_scored_with_little(case: Case) -> bool:
    """Tell whether what scores a case is made in seconds, so that a training which fails has cost no more."""
    return not isinstance(case.data, UserImages) and case.evaluate.extractor == TRAINED_HERE


def _what_was_done(case: Case, stage: Stage, output: StageOutput) -> str:
    drawn = max((m.n or 0 for m in output.measurements), default=0)
    amount = {"train": f" {case.train.steps:,} steps", "sample": f" {drawn:,} images"}
    return f"{stage}{amount.get(stage, '')}"


def _environment_of(folder: Path, here: Environment, workspace: Workspace) -> Environment:
    """Return where a case was computed as its folder says, or note that it was here."""
    path = folder / ENVIRONMENT
    lost: list[Path] = []
    known = read_record(path, Environment, lost.append)
    if known is not None:  # another run has finished it, where it ran
        return known
    if lost:
        workspace.made_again(path)
        note = "where the cases were computed is lost, its record was damaged: this is where it was found"
        here = here.model_copy(update={"note": "; ".join(filter(None, (note, here.note)))})
    write_record(path, here)
    return here


def _is_finished(case: Case, stage: Stage, root: Path) -> bool:
    return read_output(root / stage / case.key(stage)) is not None


def finished_case(case: Case, root: Path) -> Result | None:
    """Return the result of a case whose stages are all finished, without running anything."""
    outputs = []
    for stage in stages_of(case):
        output = read_output(root / stage / case.key(stage))
        if output is None:
            return None
        outputs.append(output)
    where = read_record(root / "evaluate" / case.key("evaluate") / ENVIRONMENT, Environment)
    return None if where is None else _result(case, where, outputs, "ok", "")


def _result(
    case: Case,
    where: Environment,
    outputs: list[StageOutput],
    status: Any,
    reason: str,
    notes: Sequence[str] = (),
) -> Result:
    finished = dict(zip(stages_of(case), outputs, strict=False))
    found = [m for output in outputs for m in output.measurements]
    if notes:
        found.append(Measurement(name="store_warnings", values=[len(notes)], note="; ".join(notes)))
    return Result(
        case_id=case.id,
        suite=case.suite,
        label=case.label,
        axes=case.axes,
        status=status,
        reason=reason,
        measurements=found,
        curves={name: curve for output in outputs for name, curve in output.curves.items()},
        artefacts={
            name: f"{stage}/{case.key(stage)}/{path}"  # relative to the store
            for stage, output in finished.items()
            for name, path in output.artefacts.items()
        },
        case=_as_computed(case, finished),
        environment=where,
        created=timestamp(),
    )


def _as_computed(case: Case, finished: dict[Stage, StageOutput]) -> dict[str, Any]:
    """Return a case's settings; what its keys leave out as it was when the stage was computed, if told there.

    An earlier run may have computed it with others, and the times are of that run.
    """
    settings = case.model_dump(mode="json")
    for stage, output in finished.items():
        if output.computed_with:
            settings[stage] |= output.computed_with
    return settings


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with so many CPU threads in the block, torch and NumPy's linear algebra; 0: as it is."""
    if not threads:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def preload() -> None:
    """Import what every case imports, for a process that forks the processes of cases.

    Libraries that some cases alone need (diffusers, matplotlib) are imported by these.
    """
    for stage in EVERY_STAGE:
        importlib.import_module(f"attnbench.stages.{stage}")


def main() -> None:
    """Serve one request of the executor."""
    parent = ParentProcess()
    request = json.loads(parent.request())
    os.environ.update(request["environment"])  # before a device is touched
    numpy.random.seed()  # forks of one process would draw the same where a plugin draws without a seed
    reply = parent.reply
    workspace = Workspace(
        root=Path(request["root"]),
        device=torch.device(request["device"]),
        progress=lambda stage, done, total, note: reply({"progress": [stage, done, total, note]}),
        processes=request["processes"],
        hosts=tuple(map(Host.model_validate, request["hosts"])),
        failing=lambda reason: reply({"failing": reason}),
    )
    case = Case.model_validate_json(json.dumps(request["case"]))
    try:
        with computing_with(request["threads"]):
            result = run_case(case, workspace, request["note"], beside_others=request["beside_others"])
        reply({"result": result.model_dump(mode="json")})
    except Stopped as stop:
        reply({"stopped": stop.message})
        raise


if __name__ == "__main__":
    main()
