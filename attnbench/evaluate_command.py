"""What `attnbench evaluate` and `attnbench reference build` do: score sets of images that lie anywhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError

from attnbench.console import listing, print_table, progress_bar, write_json
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.evaluation.by_class import by_class, class_figure, write_csv
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.images import open_images
from attnbench.evaluation.looks import class_names, draw_nearest, draw_tsne, labels_as_in
from attnbench.evaluation.reference import Reference, holds, save_reference
from attnbench.evaluation.scorer import Scorer, make_scorer
from attnbench.evaluation.scores import check_sizes
from attnbench.evaluation.self_test import Level, prove_golden, prove_maths, prove_network
from attnbench.plugins import registry
from attnbench.report.quantities import SPREAD
from attnbench.report.tables import Cell, Column, Row, Table, text_cell
from attnbench.results import Measurement, environment
from attnbench.run_folders import STORE
from attnbench.runner import default_device
from attnbench.specs import EvaluateSpec, Metric
from attnbench.stages.store import features_folder


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked `attnbench evaluate` for."""

    samples: Path
    reference: Path
    settings: EvaluateSpec
    case: str | None = None
    also: tuple[Path, ...] = ()
    """Other sets for the same table: another model, held-out images as a floor."""
    training: Path | None = None
    """Where nearest images are looked for; None: in the reference."""
    json_file: Path | None = None
    per_class: Path | None = None
    nearest: Path | None = None
    tsne: Path | None = None
    classes: str = "close:5"


def evaluate(request: Request, *, runs: Path, device: str, quiet: bool) -> None:
    """Score a set of images, print the table, write what else was asked for; raises UserInputError."""
    for path in (request.json_file, request.per_class, request.nearest, request.tsne):
        check_target(path)
    with progress_bar("evaluate", quiet=quiet) as progress:
        cache = features_folder(runs / STORE)
        scorer = make_scorer(request.settings, cache, _device(device), progress)
        sets, training = _sets(request, runs), _training(request)
        _check_early(request, sets)
        reference = scorer.open_reference(request.reference)
        for each in sets if request.tsne else sets[:1] if request.per_class else []:
            labels_as_in(reference, each)  # to fail before hours of extraction
        scored = {each.name: scorer.measure(reference, each) for each in sets}
        notes = _draw(request, scorer, reference, sets, training)
    if request.json_file is not None:
        write_json(request.json_file, _record(scorer, reference, scored) | {"notes": notes})
        notes.append(f"written: {request.json_file}")
    print_table(_table(scorer, reference, scored, notes))


def _check_early(request: Request, sets: Sequence[ImageCollection]) -> None:
    """Raise UserInputError for settings that do not fit the numbers of images, before any extraction."""
    if "meta" in holds(request.reference):
        return  # a reference file says its number at once
    real = len(open_images(request.reference, allow_jpeg=True))
    for images in sets:
        check_sizes(request.settings, len(images), min(real, request.settings.reference_images))


def build_reference(
    folder: Path, target: Path, settings: EvaluateSpec, *, runs: Path, device: str, quiet: bool
) -> Reference:
    """Make a reference file of a set of real images; raises UserInputError, StorageError."""
    if target.exists() and folder.exists() and target.samefile(folder):
        raise UserInputError(f"{target} holds the images themselves; give --to another name")
    if target.suffix != ".npz":
        raise UserInputError(f"a reference file ends in .npz, got {target}; give --to {target.stem}.npz")
    check_target(target)
    with progress_bar("reference", quiet=quiet) as progress:
        scorer = make_scorer(settings, features_folder(runs / STORE), _device(device), progress)
        reference = scorer.reference_from(open_images(folder, allow_jpeg=True))
    save_reference(target, reference)
    return reference


def settings_from(**given: Any) -> EvaluateSpec:
    """Return the settings the options name; raises UserInputError naming the option that is wrong."""
    metrics = given.pop("metrics", None)
    if metrics is not None:
        given["metrics"] = [word.strip() for word in metrics.split(",") if word.strip()]
        for word in given["metrics"]:
            if word not in get_args(Metric):
                raise UnknownNameError("metric", word, get_args(Metric))
        if not given["metrics"]:
            raise UserInputError(f"--metrics names none; choose of {', '.join(get_args(Metric))}")
    try:
        return EvaluateSpec.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        problems = (
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}, got {e['input']!r}" for e in error.errors()
        )
        raise UserInputError("; ".join(problems)) from error


def check_target(path: Path | None) -> None:
    """Raise UserInputError where a file cannot be written: its folder is missing, or it is one itself."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserInputError(f"the folder {path.absolute().parent} does not exist; create it first")
    if path is not None and path.is_dir():
        raise UserInputError(f"{path} is a folder; name a file in it, such as {path / 'name'}")


def _sets(request: Request, runs: Path) -> list[ImageCollection]:
    """Open all sets to be scored, under names that differ: the path where a run's label comes twice."""
    sets = [open_images(_place(request.samples, runs), case=request.case)]
    for path in request.also:
        images = open_images(path, allow_jpeg=True)
        if images.name in (each.name for each in sets):
            images = replace(images, name=str(path))
        if images.name in (each.name for each in sets):
            raise UserInputError(f"--also {path}: this set is named already; name each set once")
        sets.append(images)
    return sets


def _place(samples: Path, runs: Path) -> Path:
    """Return where samples lie: as the user says, or the run of that name below the runs folder."""
    return runs / samples if not samples.exists() and (runs / samples).is_dir() else samples


def _device(name: str) -> torch.device:
    from attnbench.profiling.session import check_device

    chosen = default_device() if name == "auto" else name
    check_device(chosen)
    return torch.device(chosen)


def _draw(
    request: Request,
    scorer: Scorer,
    reference: Reference,
    sets: Sequence[ImageCollection],
    training: ImageCollection | None,
) -> list[str]:
    """Write the pictures that were asked for; return what there is to say about them."""
    images, notes = sets[0], list[str]()
    if request.per_class is not None:
        scores = by_class(
            reference.features.pooled,
            reference.labels,
            scorer.features(images).pooled,
            labels_as_in(reference, images),
            class_names(reference),
            neighbours=request.settings.neighbours,
            at_least=max(10, request.settings.neighbours + 1),
        )
        write_csv(scores, request.per_class.with_suffix(".csv"))
        class_figure(scores, request.per_class.with_suffix(".png"), called=scorer.called, heading=images.name)
        notes.append(f"written: {request.per_class.with_suffix('.png')} and .csv, of {images.name}")
    if request.nearest is not None and training is not None:
        notes.append(draw_nearest(request.nearest, scorer, images, training))
        notes.append(f"written: {request.nearest}; images are counted from 0 in their order of opening")
    if request.tsne is not None:
        draw_tsne(request.tsne, scorer, sets, reference, request.classes)
        notes.append(f"written: {request.tsne}, with .csv and .json beside it")
    return notes


def _training(request: Request) -> ImageCollection | None:
    """Open the images that --nearest looks through; None where it is not asked for."""
    if request.nearest is None:
        if request.training is not None:
            raise UserInputError("--training names what --nearest looks through; give --nearest, or neither")
        return None
    if request.training is None and "meta" in holds(request.reference):
        raise UserInputError(
            f"--nearest shows training images, and {request.reference} holds features only; name the images "
            "with --training"
        )
    return open_images(request.training or request.reference, allow_jpeg=True)


def _table(
    scorer: Scorer, reference: Reference, scored: dict[str, list[Measurement]], more: list[str]
) -> Table:
    """Return one row per metric and one column per scored set, with the notes a reader needs."""
    first = next(iter(scored.values()))
    rows = [(m, [_cell(found, m.name) for found in scored.values()]) for m in first if _is_main(m)]
    notes = [f"{m.name}: {m.note}" for m in first if _is_main(m) and m.note]
    notes += [
        f"reference: {reference.name}, {len(reference):,} images"
        + (f"; {reference.gaussian_note}" if reference.gaussian_note else ""),
        "± is half of a 95 % interval over images at this n (METRICS.md); bias is not in it",
        *more,
        *(f"warning: {warning}" for warning in scorer.warnings),
    ]
    if scorer.suffix or scorer.settings.protocol != "adm":
        notes.append("warning: a name with a suffix or a prefix compares with no published number")
    columns = [
        Column(title=name, n=f"{found[0].n:,}" if found[0].n else "") for name, found in scored.items()
    ]
    return Table(
        title=f"{scorer.settings.extractor}, protocol {scorer.settings.protocol}",
        columns=(Column(title="metric", numeric=False), *columns),
        rows=tuple(Row(cells=(text_cell(_titled(metric)), *found)) for metric, found in rows),
        notes=tuple(notes),
    )


def _is_main(measurement: Measurement) -> bool:
    return not measurement.name.endswith(SPREAD)


def _titled(measurement: Measurement) -> str:
    return f"{measurement.name} {'↓' if measurement.better == 'lower' else '↑'}"


def _cell(found: Sequence[Measurement], name: str) -> Cell:
    """Return a metric's value, half its interval and, where it has one, its spread over subsets or splits."""
    by_name = {m.name: m for m in found}
    value, (low, high) = by_name[name].value, by_name[name].interval or (math.nan, math.nan)
    spread = by_name.get(name + SPREAD)
    detail = f"± {(high - low) / 2:.2g}" + (f", std {spread.value:.2g}" if spread else "")
    return Cell(text=f"{value:.4g}", value=value, detail=detail)


def _record(scorer: Scorer, reference: Reference, scored: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Return everything as plain data, for --json."""
    return {
        "reference": {"name": reference.name, "images": len(reference), **_provenance(reference)},
        "settings": scorer.settings.model_dump(mode="json"),
        "scored": {name: [m.model_dump(mode="json") for m in found] for name, found in scored.items()},
        "warnings": scorer.warnings,
        "environment": environment().model_dump(mode="json"),
    }


def _provenance(reference: Reference) -> dict[str, Any]:
    return reference.provenance.model_dump(mode="json")


def self_test(settings: EvaluateSpec, golden: Path | None, *, runs: Path, device: str) -> int:
    """Prove the metrics level by level, print every comparison, return the exit code."""

    def make(settings: EvaluateSpec) -> Scorer:
        return make_scorer(settings, features_folder(runs / STORE), _device(device))

    registry().extractor(settings.extractor)  # a wrong name is an error, not a proof that did not run
    proofs = [*prove_maths(), *prove_network(make, settings), *prove_golden(make, settings, golden)]
    rows = [
        (proof.level, proof.what, proof.status, _shown(proof.ours), _shown(proof.theirs), proof.reason)
        for proof in proofs
    ]
    columns = ("level", "what", "status", "ours", "theirs", "why not")
    counts = Counter(proof.status for proof in proofs)
    ran = {proof.level for proof in proofs if proof.status != "not run"}
    levels = [level for level in get_args(Level) if level in ran]
    note = f"{counts['ok']} ok, {counts['failed']} failed, {counts['not run']} not run; levels that ran: "
    print_table(listing("self-test of the metrics", columns, rows, (note + (", ".join(levels) or "none"),)))
    return 1 if counts["failed"] else 0


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
