"""Stage `diagnose`: what a trained case does inside, from its averaged weights, where a suite asks for it.

Noised training images with their classes pass the model at a few timesteps. Of every block it records how
alike the tokens come out, the implied attention map of the first images, and what its attention hands to
`context.record`. Nothing else depends on it. A block whose attention has no map is named with the reason; the
case goes on.
"""

from __future__ import annotations

import time
from typing import cast

from attnbench.diffusion.noise import fork_rng
from attnbench.models import build_model, fuse_for_inference
from attnbench.models.skeleton import DiffusionTransformer
from attnbench.report.diagnosis_record import ARTEFACT, MAP_MEASURES, MEASURES, PREFIX, TIME, Diagnosis
from attnbench.results import Measurement, with_checksum
from attnbench.specs import Case, DiagnoseSpec
from attnbench.stages.diagnosing.examples import choose_examples
from attnbench.stages.diagnosing.inspection import Inspection
from attnbench.stages.diagnosing.maps import PROBES
from attnbench.stages.latents.model_space import training_source
from attnbench.stages.prepare import dataset_of
from attnbench.stages.training.checkpoint import load_averaged, load_into
from attnbench.storage.atomic import atomic_write
from attnbench.storage.names import AVERAGED, DIAGNOSIS
from attnbench.storage.store import StageOutput, Workspace, write_output


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Record what the case's suite asks for, or return what an earlier run finished.

    Raises CheckpointError for damaged weights, DataError or StorageError.
    """
    folder = workspace.folder("diagnose", case)
    with workspace.holding(folder):
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        began = time.perf_counter()
        diagnosis = diagnose(case, workspace)
        atomic_write(folder / DIAGNOSIS, with_checksum(diagnosis))
        output = describe(diagnosis, time.perf_counter() - began)
        write_output(folder, output)
        return output


def diagnose(case: Case, workspace: Workspace) -> Diagnosis:
    """Load the averaged weights and look at every timestep."""
    asked = case.diagnose or DiagnoseSpec()
    total = len(asked.timesteps)
    workspace.report("diagnose", 0, total, "timesteps")
    dataset = dataset_of(case, workspace)
    examples = choose_examples(case, training_source(case, dataset, workspace), asked.images)
    inspection = Inspection(case=case, asked=asked, model=_load(case, workspace), examples=examples)
    for number, timestep in enumerate(asked.timesteps, start=1):
        inspection.look(timestep, workspace.device)
        workspace.report("diagnose", number, total, "timesteps")
    return inspection.result(dataset.class_names)


def _load(case: Case, workspace: Workspace) -> DiffusionTransformer:
    """Return the model that samples are drawn from, its weights fixed; raises CheckpointError."""
    path = workspace.folder("train", case) / AVERAGED
    weights, model_input = load_averaged(path, case.key("train"))
    with fork_rng(workspace.device):
        model = build_model(case.model, model_input.shape[1], model_input.num_classes)
    load_into(model, weights, path)
    fused = fuse_for_inference(model.to(workspace.device).eval())
    return cast("DiffusionTransformer", fused.requires_grad_(False))


def describe(diagnosis: Diagnosis, seconds: float) -> StageOutput:
    """Return means over everything as measurements, and means over timesteps as curves over the blocks."""
    found = [Measurement(name=TIME, unit="s", values=[seconds], n=diagnosis.images, better="lower")]
    for name in MEASURES:
        mean = diagnosis.mean(name)
        measured = Measurement(
            name=PREFIX + name,
            values=[] if mean is None else [mean],
            n=diagnosis.map_images if name in MAP_MEASURES else diagnosis.images,
            note=_from_what(diagnosis, name),
        )
        found.append(measured)
    if diagnosis.problems:
        note = "; ".join(diagnosis.problems)
        found.append(Measurement(name="diagnose_warnings", values=[len(diagnosis.problems)], note=note))
    curves = {PREFIX + name: [(float(n), v) for n, v in diagnosis.over_layers(name)] for name in MEASURES}
    return StageOutput(
        measurements=found,
        curves={name: curve for name, curve in curves.items() if curve},
        artefacts={ARTEFACT: DIAGNOSIS},
    )


def _from_what(diagnosis: Diagnosis, name: str) -> str:
    """Say what a mean is over."""
    steps = ", ".join(map(str, diagnosis.timesteps))
    over = f"mean over {len(diagnosis.paths)} blocks and timesteps {steps}"
    if name not in MAP_MEASURES:
        return over
    tokens = diagnosis.grid[0] * diagnosis.grid[1]
    kinds = " and ".join(sorted({path for path in diagnosis.paths if path})) or "nothing"
    return f"{over}; {diagnosis.num_queries} of {tokens} queries, to {kinds}, {PROBES} probes"
