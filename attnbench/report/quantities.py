"""The measurements reports know by name: their titles, units, directions and definitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.results import Direction, Result

RESOLVED = re.compile(r"^(?P<name>.+)@(?P<resolution>\d+)$")
QUALITY = re.compile(
    r"^(?P<protocol>clean-)?(?P<family>s?FI?D|s?KI?D|IS|Precision|Recall|P|R)(?P<suffix>-.+)?$"
)
FLOORS = {
    "floor": "real held-out images (floor)",
    "floor-codec": "real images through the autoencoder (floor)",
}
"""What is scored in place of samples, by what stands before the colon in the measurement's name."""
FLOOR = re.compile(rf"^(?P<kind>{'|'.join(FLOORS)}):(?P<name>.+)$")
SEPARABILITY = re.compile(r"^(?P<protocol>clean-)?(?P<kind>knn_accuracy|silhouette)(?:-(?P<suffix>.+))?$")
SPREAD = " std"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How reports show one kind of measurement."""

    name: str
    """The measurement's name, without `@resolution`."""
    title: str
    unit: str = ""
    scale: float = 1.0
    """Shown value over stored value."""
    better: Direction = "none"
    decimals: int = 0
    """At least so many decimals in a table; more where a typical value would show fewer than three digits."""
    keep_smallest: bool = False
    """Give three digits to the column's smallest value, not only to its median."""
    significant: bool = False
    """Four significant digits per value instead of one number of decimals per column."""
    group: str = ""
    """Heading over neighbouring columns."""
    definition: str = ""


SIZE = (
    Quantity(name="params", title="Parameters", unit="M", scale=1e-6, decimals=2, keep_smallest=True,
             group="Size",
             definition="Trainable parameters of the whole model, in millions."),
    Quantity(name="macs_paper", title="MACs, paper's count", unit="G", scale=1e-9, decimals=2,
             keep_smallest=True, group="Size",
             definition="Multiply-adds (10^9) of one forward pass of one image without guidance, counted as "
                        "the published tables do: what papers call GFLOPs."),
    Quantity(name="macs_full", title="MACs, full count", unit="G", scale=1e-9, decimals=2,
             keep_smallest=True, group="Size",
             definition="Multiply-adds (10^9) of the same pass with every product counted, those inside "
                        "attention too. One multiply-add is one MAC; twice that many FLOPs."),
)  # fmt: skip
MACS = SIZE[2]
LATENCY = Quantity(
    name="latency_ms", title="Latency", unit="ms", better="lower", significant=True, group="Cost",
    definition="Time of one pass: each round's median of its samples, then the median of those over rounds, "
               "with its 95 % interval over rounds. Wall clock on a CPU, device events on a GPU.",
)  # fmt: skip
LEFT_OUT = "waited_latency_ms"
"""Samples of latency that do not count, since a thread waited for a core."""
LIVE_MEMORY = Quantity(
    name="live_memory_mib", title="Live memory", unit="MiB", better="lower", significant=True, group="Cost",
    definition="The model's memory: what one pass adds at its peak, by the sizes of the tensors alive then.",
)  # fmt: skip
PEAK_MEMORY = Quantity(
    name="peak_memory_mib", title="Peak memory", unit="MiB", better="lower", significant=True, group="Cost",
    definition="Highest memory during one pass, whatever holds it: allocated on a GPU; on a CPU the "
               "resident-set high-water mark of the case's own process.",
)  # fmt: skip
MEMORY = (
    LIVE_MEMORY,
    Quantity(name="extra_memory_mib", title="Extra memory", unit="MiB", better="lower", significant=True,
             group="Cost", definition="What one pass adds to the process's resident set (CPU) or to what the "
                                      "allocator has handed out (GPU): live memory and what holds it."),
    PEAK_MEMORY,
    Quantity(name="reserved_memory_mib", title="Reserved memory", unit="MiB", better="lower",
             significant=True, group="Cost", definition="What a GPU's allocator held at its peak."),
)  # fmt: skip
STEP_TIME = Quantity(
    name="step_time_ms", title="Train step", unit="ms", better="lower", significant=True, group="Cost",
    definition="Time of one optimizer step, median.",
)  # fmt: skip
TRAINING = (
    Quantity(name="steps", title="Steps"),
    Quantity(name="train_time_s", title="Training", unit="s", better="lower", significant=True),
    STEP_TIME,
    Quantity(name="final_loss", title="Final loss", better="lower", decimals=4,
             definition="Training loss at the end; compare it only under the same objective and data."),
    Quantity(name="held_out_loss", title="Held-out loss", better="lower", decimals=4,
             definition="Denoising loss of the averaged weights on held-out images, mean over 8 equidistant "
                        "times, the same noise for every case; compare it only under the same objective."),
    Quantity(name="data_wait_share", title="Waiting for data", better="lower", decimals=3,
             definition="Share of the training time that steps waited for their batch."),
    Quantity(name="step_macs", title="MACs of a step", unit="G", scale=1e-9, better="lower", decimals=3,
             keep_smallest=True,
             definition="Multiply-adds (10^9), full count, of one image in one step of a training with a "
                        "teacher: forward and backward pass, and the teacher's pass."),
    Quantity(name="teacher_memory_mib", title="Teacher's memory", unit="MiB", better="lower",
             significant=True,
             definition="What a training with a teacher holds for it: its weights, and the tensors alive at "
                        "the peak of its pass over one micro-batch."),
    Quantity(name="sample_time_s", title="Sampling", unit="s", better="lower", significant=True),
    Quantity(name="decode_time_s", title="Decoding", unit="s", better="lower", significant=True,
             definition="Time of the autoencoder's decoder, a part of sampling; on a GPU beside it."),
    Quantity(name="images_per_s", title="Sampling rate", unit="images/s", better="higher", significant=True),
    Quantity(name="denoise_images_per_s", title="Sampling rate without decoding", unit="images/s",
             better="higher", significant=True),
)  # fmt: skip
ACCURACY = Quantity(
    name="class_accuracy", title="Class accuracy", better="higher", decimals=3, group="Quality",
    definition="Share of conditional samples that a classifier, trained on the training images, puts into "
               "the class they were asked for. 'real' is the same classifier on held-out real images.",
)  # fmt: skip
_CLOSEST = (
    "Of the classes that lie closest in the features of real images. Read it beside that of real images, the "
    "floor: samples that all look like the middle of their class separate better than these."
)
_SEPARABILITIES = {
    "knn_accuracy": (
        "kNN accuracy", "Share of samples whose class is that of most of their nearest other samples. ",
    ),
    "silhouette": (
        "Silhouette", "Mean of (b - a) / max(a, b), a and b the mean distances of a sample to its own and to "
                      "the next class, -1 to 1 (Rousseeuw 1987). ",
    ),
}  # fmt: skip
DIAGNOSIS = (
    Quantity(name="diagnose:token_similarity", title="Token similarity", decimals=3,
             definition="Mean cosine of two different tokens of a block's output, over blocks, timesteps and "
                        "images; 1 where all tokens point the same way (Shi et al. 2022)."),
    Quantity(name="diagnose:attention_similarity", title="Token similarity of the attention", decimals=3,
             definition="The same of the attention's own output, before the residual stream."),
    Quantity(name="diagnose:entropy", title="Map entropy", decimals=3,
             definition="Mean entropy of a row of the implied attention map over ln N: 1 where every input "
                        "token weighs alike, 0 where one takes all."),
    Quantity(name="diagnose:effective_rank", title="Effective rank", decimals=2,
             definition="Exponential of the entropy of the implied map's singular values, mean over heads; "
                        "at most the number of output tokens taken (Roy and Vetterli 2007)."),
    Quantity(name="diagnose:row_variance", title="Row variance", decimals=2,
             definition="Variance of N times the weights in a row of the implied attention map: 0 where "
                        "every input token weighs alike, N - 1 where one takes all."),
    Quantity(name="diagnose_time_s", title="Diagnosis", unit="s", significant=True,
             definition="Time of this stage; no part of training or sampling."),
)  # fmt: skip
REAL_ACCURACY = "class_accuracy_real"
NOTED = (
    "unreadable_images", "training_warnings", "sample_warnings", "evaluation_warnings", "profile_warnings",
    "store_warnings", "diagnose_warnings",
)  # fmt: skip
"""Counts of what went wrong, whose notes stand among the report's warnings."""

_FAMILIES: dict[str, tuple[Direction, int, str]] = {
    "FD": ("lower", 2, "Frechet distance between Gaussians fitted to the features of samples and reference."),
    "KD": ("lower", 4, "Kernel distance: unbiased squared MMD, cubic polynomial kernel, mean over subsets; "
                       "not multiplied by 1000. It can fall below zero."),
    "IS": ("higher", 2, "Inception score, on the extractor's class probabilities."),
    "P": ("higher", 3, "Precision: share of samples inside the reference's k-nearest-neighbour manifold."),
    "R": ("higher", 3, "Recall: share of reference images inside the samples' manifold."),
}  # fmt: skip
_SYNONYMS = {"FID": "FD", "KID": "KD", "Precision": "P", "Recall": "R"}


def resolutions(result: Result) -> list[int]:
    """Return the image sides in pixels that a result holds profile measurements for, ascending."""
    found = (RESOLVED.match(m.name) for m in result.measurements)
    return sorted({int(match["resolution"]) for match in found if match})


def main_resolution(result: Result) -> int | None:
    """Return the side that stands for a case: its data's where measured, else the smallest."""
    measured = resolutions(result)
    data = result.case.get("data")
    side = data.get("image_size") if isinstance(data, dict) else None
    if side in measured:
        return int(side)
    return measured[0] if measured else None


def quality_quantities(results: Iterable[Result]) -> list[Quantity]:
    """Return the quality metrics that occur, distances first, each with its extractor's suffix."""
    names = {m.name: m.better for r in results for m in r.measurements if is_quality(m.name)}
    return sorted((_quality(name, better) for name, better in names.items()), key=_quality_order)


def separability_quantities(results: Iterable[Result]) -> list[Quantity]:
    """Return the separabilities of similar classes that were measured, by feature network."""
    found = (m for r in results for m in r.measurements if m.values)
    names = dict.fromkeys(m.name for m in found if is_separability(m.name))
    return [_separability(name) for name in sorted(names, key=_by_network)]


def is_separability(name: str) -> bool:
    """Tell whether a measurement says how well the samples of similar classes separate."""
    return bool(SEPARABILITY.match(name))


def comparison_costs(results: Iterable[Result]) -> list[Quantity]:
    """Return the costs that the comparison shows: of the memories the live one, of older results the peak."""
    names = [{unresolved(m.name) for m in r.measurements} for r in results]
    older = any(PEAK_MEMORY.name in found and LIVE_MEMORY.name not in found for found in names)
    return [LATENCY, LIVE_MEMORY, *([PEAK_MEMORY] if older else []), STEP_TIME]


def is_quality(name: str) -> bool:
    """Tell whether a measurement is a quality metric (not its spread, not its floor)."""
    return bool(QUALITY.match(name)) and not name.endswith(SPREAD) and not RESOLVED.match(name)


def other_names(results: Sequence[Result]) -> list[str]:
    """Return the names no table of ours shows, such as a plugin's, in order of appearance."""
    return list(dict.fromkeys(m.name for r in results for m in r.measurements if not _is_known(m.name)))


def unresolved(name: str) -> str:
    """Return a measurement's name without its resolution: `latency_ms@256` is `latency_ms`."""
    match = RESOLVED.match(name)
    return match["name"] if match else name


def _is_known(name: str) -> bool:
    floor = FLOOR.match(name)
    base = (floor["name"] if floor else name).removesuffix(SPREAD)
    if is_quality(base) or is_separability(base) or base in (ACCURACY.name, REAL_ACCURACY):
        return True
    if RESOLVED.match(name):
        return unresolved(name) in {q.name for q in (*SIZE, LATENCY, *MEMORY)} | {LEFT_OUT}
    return name in {"params", *NOTED, *(q.name for q in (*TRAINING, *DIAGNOSIS))}


def _quality(name: str, better: Direction) -> Quantity:
    family = _family(name)
    direction, decimals, definition = _FAMILIES[family.removeprefix("s")]
    if family.startswith("s"):
        definition += " On spatial features."
    return Quantity(
        name=name,
        title=name,
        better=direction if better == "none" else better,
        decimals=decimals,
        group="Quality",
        definition=definition,
    )


def _separability(name: str) -> Quantity:
    match = SEPARABILITY.match(name)
    assert match is not None
    title, definition = _SEPARABILITIES[match["kind"]]
    return Quantity(
        name=name,
        title=(match["protocol"] or "") + title + (f"-{match['suffix']}" if match["suffix"] else ""),
        better="higher",
        decimals=3,
        group="Quality",
        definition=definition + _CLOSEST,
    )


def _by_network(name: str) -> tuple[str, str]:
    match = SEPARABILITY.match(name)
    return ((match["suffix"] or "") + (match["protocol"] or ""), match["kind"]) if match else ("", "")


def _family(name: str) -> str:
    match = QUALITY.match(name)
    if match is None:
        raise ValueError(f"{name!r} is no quality metric")
    spatial = "s" if match["family"].startswith("s") else ""
    plain = match["family"].removeprefix("s")
    return spatial + _SYNONYMS.get(plain, plain)


def _quality_order(quantity: Quantity) -> tuple[str, int, str]:
    match = QUALITY.match(quantity.name)
    suffix = (match["suffix"] or "") + (match["protocol"] or "") if match else ""
    order = ("FD", "sFD", "KD", "sKD", "IS", "P", "R")
    return suffix, order.index(_family(quantity.name)), quantity.name
