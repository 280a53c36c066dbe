"""Estimates of a plan, from closed forms: not measurements. Time, multiply-adds and disk of stages."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attnbench.contract import MacCount
from attnbench.errors import DataError
from attnbench.models.resolution import input_size
from attnbench.running.machines import Machine
from attnbench.running.once import shared_by
from attnbench.specs import Case, ModelConfig, PreparedData, UserImages
from attnbench.stages.latents.latent_space import has_posterior
from attnbench.stages.latents.model_space import codec_of, latent_factor
from attnbench.stages.profile import profile_precision
from attnbench.storage.store import STAGES, Stage

BLOCK_OVERHEAD_S = 5e-4
"""Fixed time of every block, in Python and kernel launches."""
PASS_FACTORS = {"forward": 1, "train": 3, "sample": 2}
"""Of a profile's pass: forward passes."""
COUNTING_S = 0.5
"""Of a row of the profile: multiply-adds by both counters."""
ROW_SET_UP_S = 6.0
"""Of a row: a process that measures memory and up to five that take turns (DESIGN 49), with warm-ups."""
EXTRA_PASSES = 6
"""Of a row beside its rounds: memory and warm-up."""
BYTES_PER_LATENT_VALUE = 4
"""Of an image and its mirror image, float16."""
NUM_CLASSES_GUESS = 100  # a folder that is not here yet: as many classes as Sub-IN


def stage_time_s(case: Case, stage: Stage, machine: Machine) -> float | None:
    """Estimate one stage's time on one device from its multiply-adds; None where there is no estimate.

    Where latents are encoded and images are scored, other networks work than the case's.
    """
    if stage == "prepare":
        return 0.0 if case.model.input == "pixel" else None
    if stage == "evaluate":
        return None
    if stage == "diagnose":
        return diagnose_passes(case) * closed_form(case).full / machine.macs_per_s["fp32"]
    if stage == "train":
        fixed_s = (4 if _is_taught(case) else 3) * case.model.depth * BLOCK_OVERHEAD_S * case.train.steps
        return fixed_s + training_macs(case) / machine.macs_per_s[case.train.precision]
    passes = sampling_passes(case)
    calls = passes / case.sample.batch_size
    compute_s = passes * closed_form(case).full / machine.macs_per_s[case.sample.precision]
    return calls * case.model.depth * BLOCK_OVERHEAD_S + compute_s


def training_macs(case: Case) -> int:
    """Multiply-adds of the whole training: a backward pass is two forward passes, a teacher adds its own."""
    macs = 3 * closed_form(case).full
    if case.teacher is not None and _is_taught(case):
        macs += closed_form(case.model_copy(update={"model": case.teacher.model})).full
    return case.train.steps * case.train.batch_size * macs


def _is_taught(case: Case) -> bool:
    """Tell whether a teacher makes a forward pass in every step."""
    return case.teacher is not None and case.train.teacher is not None and case.train.teacher.is_asked


def sampling_passes(case: Case) -> int:
    """Return the forward passes of one image that drawing all samples takes."""
    guidance = 1 if case.sample.guidance_scale == 1 else 2
    return case.sample.per_class * num_classes(case) * guidance * case.sample.num_steps


def row_time_s(case: Case, resolution: int, machine: Machine) -> float:
    """Estimate the time of one row of the profile: its processes, and the passes that they take."""
    from attnbench.models.macs import closed_form_macs

    spec = case.profile
    side = input_size(case.model, resolution, latent_factor(case))
    macs = closed_form_macs(case.model, side).full * spec.batch_size * PASS_FACTORS[spec.mode]
    pass_s = case.model.depth * BLOCK_OVERHEAD_S + macs / machine.macs_per_s[profile_precision(case)]
    if not {"latency", "memory"} & set(spec.measure):
        return COUNTING_S
    passes_s = min(spec.timeout_s, (spec.rounds + EXTRA_PASSES) * pass_s)
    return COUNTING_S + ROW_SET_UP_S + passes_s


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


def _model_and_data(case: Case) -> tuple[str, str]:
    return case.model.content_text(), case.data.text()


def _data(case: Case) -> str:
    return case.data.text()


@shared_by(_model_and_data)
def closed_form(case: Case) -> MacCount:
    """Multiply-adds of the case's model at the data's resolution."""
    from attnbench.models.macs import closed_form_macs

    return closed_form_macs(case.model, model_side(case))


@shared_by(_model_and_data)
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


@shared_by(_data)
def num_images(case: Case) -> int:
    """Training images of the user's data, without opening them; 0 for a folder that is not there yet."""
    if not isinstance(case.data, UserImages) or not case.data.path.is_dir():
        return 0
    if not isinstance(case.data, PreparedData):
        return sum(len(files) for _, _, files in os.walk(case.data.path))
    from attnbench.data.prepared import read_fitting_card

    try:
        return read_fitting_card(case.data).parts["train"].num_images
    except DataError:  # said as missing
        return 0


@shared_by(lambda config, side, classes: (config.content_text(), side, classes))
def num_params(config: ModelConfig, side: int, classes: int) -> int:
    """Parameters of a model, counted on the meta device."""
    from attnbench.models.skeleton import build_model

    return sum(p.numel() for p in build_model(config, side, classes, device="meta").parameters())


def num_classes(case: Case) -> int:
    """Classes of the data, without reading images; a guess for a folder that cannot tell them yet."""
    return known_classes(case) or NUM_CLASSES_GUESS


@shared_by(_data)
def known_classes(case: Case) -> int | None:
    """Classes of the data, without reading images; None for a folder that cannot tell them yet."""
    from attnbench.data import class_names

    try:
        return len(class_names(case.data))
    except DataError:
        return None
