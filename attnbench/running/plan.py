"""What a run will cost before it runs: cases, what is finished, time and disk. Runs nothing."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.contract import MacCount
from attnbench.devices import default_device
from attnbench.errors import AttnbenchError, DataError
from attnbench.models.resolution import input_size
from attnbench.running.made_anew import made_anew
from attnbench.specs import Case, ModelConfig, PreparedData, UserImages
from attnbench.stages.latents.latent_space import has_posterior
from attnbench.stages.latents.model_space import assumption, codec_of, latent_factor
from attnbench.storage import hub
from attnbench.storage.store import STAGES, Stage, read_output, stages_of
from attnbench.suite.loading import Suite, of_cases
from attnbench.suite.teachers import missing_teacher

# Estimates, not measurements: a backward pass costs two forward passes, a small matmul reaches
# about 0.6 of the rate of a large one, and every block costs some fixed time in Python and kernel launches.
MATMUL_EFFICIENCY = 0.6
BLOCK_OVERHEAD_S = 5e-4
BYTES_PER_LATENT_VALUE = 4
"""Of an image and its mirror image, float16."""
NUM_CLASSES_GUESS = 100  # a folder that is not here yet: as many classes as Sub-IN


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """One case, which of its stages are finished, and what the rest will take."""

    case: Case
    finished: tuple[Stage, ...]
    time_s: float
    disk_bytes: int
    missing: tuple[str, ...] = ()
    """What a run would refuse for want of the user's folders and files, each with the next step."""
    problem: str = ""
    """Why this case cannot be planned, let alone run."""
    assumed: str = ""
    """What its sizes rest on while its autoencoder is not on this machine."""


def plan(cases: Sequence[Case], store: Path) -> list[PlannedCase]:
    """Plan every case; stages shared by two cases are counted once."""
    rate = matmul_macs_per_s()
    counted: set[tuple[Stage, str]] = set()
    planned = []
    for case in cases:
        finished = tuple(s for s in stages_of(case) if read_output(store / s / case.key(s)) is not None)
        missing = [s for s in stages_of(case) if s not in finished and (s, case.key(s)) not in counted]
        counted.update((s, case.key(s)) for s in missing)
        first = _teacher_to_train(case, store) if "train" in missing else None
        try:
            time_s = sum(stage_time_s(case, s, rate) for s in missing)
            if first is not None and ("train", first.key("train")) not in counted:
                counted.add(("train", first.key("train")))
                time_s += stage_time_s(first, "train", rate)
            disk_bytes, problem = disk_needed_bytes(case, missing), ""
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's backend may raise anything
            time_s, disk_bytes, problem = 0.0, 0, f"{type(error).__name__}: {error}"
        planned.append(
            PlannedCase(
                case=case,
                finished=finished,
                time_s=time_s,
                disk_bytes=disk_bytes,
                missing=missing_inputs(case),
                problem=problem,
                assumed=assumption(case),
            )
        )
    return planned


def _teacher_to_train(case: Case, store: Path) -> Case | None:
    """Return the case of the same suite that teaches a case, where its training is not finished."""
    teacher = case.teacher.trains_here if case.teacher is not None else None
    if teacher is None or read_output(store / "train" / teacher.key("train")) is not None:
        return None
    return teacher


def finished_trainings(store: Path) -> dict[str, int]:
    """Return the steps of every finished training in a store, by its key."""
    found = {}
    for folder in (store / "train").glob("*"):
        output = read_output(folder)
        steps = [int(m.value) for m in output.measurements if m.name == "steps"] if output else []
        if steps:
            found[folder.name] = steps[0]
    return found


def finished_shorter(case: Case, store: Path, finished: Mapping[str, int]) -> int | None:
    """Return the steps of the longest finished training that differs from the case's in having fewer steps.

    None where the case's own has been begun.
    """
    if any((store / "train" / case.key("train")).glob("*")):
        return None
    for steps in sorted({steps for steps in finished.values() if steps < case.train.steps}, reverse=True):
        shorter = case.model_copy(update={"train": case.train.model_copy(update={"steps": steps})})
        if shorter.key("train") in finished:
            return steps
    return None


def warnings(suite: Suite, store: Path) -> list[str]:
    """Return what a person should know before a suite runs, one line each, the cases it is for first."""
    found = {text: list(labels) for text, labels in suite.warnings.items()}
    own = {case.key("train") for case in suite.cases}  # a suite that asks for both means both
    finished = {key: steps for key, steps in finished_trainings(store).items() if key not in own}
    other = []
    for case in suite.cases:
        steps = finished_shorter(case, store, finished)
        if steps is None:
            other.append(case)
            continue
        text = (
            f"train.steps {case.train.steps:,}: the finished training of {steps:,} steps is not gone on "
            f"from, all {case.train.steps:,} are made anew; to train it further, `attnbench export` it "
            "and name the folder in train.init_from"
        )
        found.setdefault(text, []).append(case.label)
    found |= made_anew(other, store.parent / suite.name)
    return [f"{of_cases(labels, len(suite.cases))}: {text}" for text, labels in found.items()]


def missing_inputs(case: Case) -> tuple[str, ...]:
    """Return what of the user's a case needs and has not, one sentence each; imports no torch."""
    named = [("train.init_from", case.train.init_from), ("evaluate.weights", case.evaluate.weights)]
    if isinstance(case.data, UserImages):
        codec = case.data.codec
        named = [("data.path", case.data.path), ("data.codec.path", codec.path if codec else None), *named]
    absent = [(key, path) for key, path in named if path is not None and not path.exists()]
    said = [f"{key}: {path} does not exist; name yours with -o {key}=PATH" for key, path in absent]
    if isinstance(case.data, PreparedData) and "data.path" not in dict(absent):
        from attnbench.data.prepared import read_fitting_card

        try:
            read_fitting_card(case.data)
        except DataError as error:
            said.append(f"data.path: {error}")
    if missing := missing_teacher(case):
        said.append(missing)
    return (*said, *_missing_autoencoder(case), *_missing_weights(case))


def _missing_autoencoder(case: Case) -> tuple[str, ...]:
    """Return what to do where an autoencoder on the hub is neither in the cache nor to be had."""
    from huggingface_hub import constants

    codec = case.data.codec if isinstance(case.data, UserImages) else None
    if codec is None or codec.hub is None or not constants.HF_HUB_OFFLINE:
        return ()
    model = hub.HubModel(name=codec.hub, subfolder=codec.subfolder, revision=codec.revision)
    if hub.cached(model) is not None:
        return ()
    return (
        f"data.codec.hub: {model.title} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; "
        f"unset that, or run `{model.command}` where there is a network",
    )


def _missing_weights(case: Case) -> tuple[str, ...]:
    """Return what to do where the feature network's weights file is not there, or is not the right one."""
    from attnbench.metrics.published_weights import published
    from attnbench.metrics.weights_files import find, places

    file, named = published().get(case.evaluate.extractor), case.evaluate.weights
    if file is None or (named is not None and not named.exists()):  # told already
        return ()
    if named is None and not any(path.is_file() for path in places(file)):
        return (
            f"evaluate.weights: extractor {file.extractor} needs the weights file {file.names[0]}, which is "
            f"in no usual place; {file.source}, or name it with -o evaluate.weights=PATH",
        )
    try:
        find(file, named)
    except AttnbenchError as error:  # a folder, or another file: not only after the training
        return (f"evaluate.weights: {error}",)
    return ()


def stage_time_s(case: Case, stage: Stage, macs_per_s: float) -> float:
    """Estimate one stage's time from its multiply-adds."""
    if stage not in ("train", "sample", "diagnose"):
        return 0.0
    forward_macs = closed_form(case).full
    if stage == "diagnose":
        return diagnose_passes(case) * forward_macs / (macs_per_s * MATMUL_EFFICIENCY)
    fixed_s = case.model.depth * BLOCK_OVERHEAD_S
    if stage == "train":
        passes_macs, passes = 3 * forward_macs, 3
        if case.teacher is not None and case.train.teacher is not None and case.train.teacher.is_asked:
            passes_macs, passes = passes_macs + closed_form(_as_taught(case)).full, 4
        compute_s = case.train.batch_size * passes_macs / (macs_per_s * MATMUL_EFFICIENCY)
        return case.train.steps * (passes * fixed_s + compute_s)
    guidance = 1 if case.sample.guidance_scale == 1 else 2
    images = case.sample.per_class * num_classes(case) * guidance
    calls = images / case.sample.batch_size * case.sample.num_steps
    compute_s = images * case.sample.num_steps * forward_macs / (macs_per_s * MATMUL_EFFICIENCY)
    return calls * fixed_s + compute_s


def _as_taught(case: Case) -> Case:
    """Return a case with the teacher's model in place of its own."""
    assert case.teacher is not None
    return case.model_copy(update={"model": case.teacher.model})


def diagnose_passes(case: Case) -> int:
    """Return the forward passes of one image that a diagnosis costs at most.

    A map takes one forward and PROBES backward passes of the attention alone for each of its rows.
    """
    from attnbench.stages.diagnosing.maps import PROBES

    asked = case.diagnose
    if asked is None:
        return 0
    tokens = (model_side(case) // case.model.patch_size) ** 2
    rows = min(asked.map_images, asked.images) * min(asked.queries, tokens)
    return len(asked.timesteps) * (asked.images + rows * (1 + 2 * PROBES))


def closed_form(case: Case) -> MacCount:
    """Multiply-adds of the case's model at the data's resolution."""
    from attnbench.models.macs import closed_form_macs

    return closed_form_macs(case.model, model_side(case))


def model_side(case: Case) -> int:
    """Side of the model's input for the data's images, by the case's autoencoder where there is one."""
    return input_size(case.model, case.data.image_size, latent_factor(case))


def disk_needed_bytes(case: Case, stages: Sequence[Stage] = STAGES) -> int:
    """Estimate what the stages will store: weights, average, two moments, and the samples."""
    total, classes = 0, num_classes(case)
    if "prepare" in stages and case.model.input == "latent":
        total += num_images(case) * latent_bytes(case)
    if "train" in stages:
        averages = 1 + len(case.train.extra_ema_decays)
        kept = 2 * (3 + averages) + averages  # two checkpoints: weights, two moments, averages; then averages
        total += kept * 4 * num_params(case.model, model_side(case), classes)
    if "sample" in stages:
        total += case.sample.per_class * classes * 3 * case.data.image_size**2
    return total


def latent_bytes(case: Case) -> int:
    """What is kept of one image: latents, or mean and log variance of each."""
    codec = codec_of(case)
    kept = 2 if codec is None or has_posterior(codec.kind) else 1
    return BYTES_PER_LATENT_VALUE * kept * case.model.in_channels * model_side(case) ** 2


def num_images(case: Case) -> int:
    """Training images of the user's data, without opening them; 0 for a folder that is not there yet."""
    if not isinstance(case.data, UserImages) or not case.data.path.is_dir():
        return 0
    if not isinstance(case.data, PreparedData):
        return sum(len(files) for _, _, files in os.walk(case.data.path))
    from attnbench.data.prepared import read_fitting_card

    return read_fitting_card(case.data).parts["train"].num_images


def num_params(config: ModelConfig, side: int, classes: int) -> int:
    """Parameters of a model, counted on the meta device."""
    from attnbench.models.skeleton import build_model

    return sum(p.numel() for p in build_model(config, side, classes, device="meta").parameters())


def num_classes(case: Case) -> int:
    """Classes of the data, without reading images; a guess for a folder that is not there yet."""
    if isinstance(case.data, UserImages) and not case.data.path.is_dir():
        return NUM_CLASSES_GUESS
    from attnbench.data import class_names

    return len(class_names(case.data))


def matmul_macs_per_s(size: int = 768, rounds: int = 5) -> float:
    """Measure this machine's fp32 matmul rate in a few milliseconds, in multiply-adds a second."""
    import torch

    device = default_device()
    a = torch.randn(size, size, device=device)
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return size**3 / statistics.median(times[2:])
