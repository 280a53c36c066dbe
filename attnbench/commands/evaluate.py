"""What `attnbench evaluate` and `attnbench reference build` do: score sets of images that lie anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError

from attnbench.commands.evaluate_inputs import EvaluationRequest, OwnData, open_sets, open_training, own_data
from attnbench.commands.targets import check_target
from attnbench.console import (
    print_notice,
    print_table,
    progress_bar,
    scores_table,
    self_test_listing,
    write_json,
)
from attnbench.devices import chosen_device
from attnbench.errors import AttnbenchError, UnknownNameError, UserInputError
from attnbench.evaluation.by_class import by_class, class_figure, write_csv
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.figures import class_names, draw_nearest, draw_tsne, labels_as_in, shown_classes
from attnbench.evaluation.images import open_images
from attnbench.evaluation.nearest import identical_images
from attnbench.evaluation.reference import Reference, holds, save_reference
from attnbench.evaluation.requirements import check_sizes, extractor_problems
from attnbench.evaluation.scorer import Scorer, make_scorer
from attnbench.evaluation.self_test import prove_golden, prove_maths, prove_network
from attnbench.evaluation.statistics_files import holds_statistics_alone
from attnbench.plugins import registry
from attnbench.progress import Progress
from attnbench.results import Measurement, environment
from attnbench.specs import EvaluateSpec, Metric
from attnbench.stages.interrupts import keeping
from attnbench.storage.names import STORE
from attnbench.storage.store import features_folder

_FEATURES_ARE_KEPT = (
    "features that were found are kept, a thousand images at a time: run the same command again to go on"
)


def evaluate(request: EvaluationRequest, *, runs: Path, device: str, quiet: bool) -> int:
    """Score a set of images, print the table, write what else was asked for; return the exit code.

    A picture that cannot be drawn costs no score: why not is said below them, and the exit code is 1. Raises
    UserInputError.
    """
    for option, path in (
        ("--json", request.json_file),
        ("--per-class", request.per_class),
        ("--nearest", request.nearest),
        ("--tsne", request.tsne),
    ):
        check_target(path, option)
    with progress_bar("evaluate", quiet=quiet) as progress:
        own = own_data(request, runs, torch.device(chosen_device(device)))
        scorer = own.scorer(request, progress) if own else _scorer(request, runs, device, progress)
        for _, problem in extractor_problems(scorer.settings, scorer.cache.extractor.record):
            raise UserInputError(problem)
        sets, training = open_sets(request, runs), open_training(request, own)
        real = _check_early(request, scorer.settings, sets, own)
        if request.reference is not None:
            reference = scorer.open_reference(request.reference, request.image_size, real)
        else:
            assert own is not None  # or there would be no reference at all
            reference = scorer.reference_from(own.reference())
        for each in sets if request.tsne else sets[:1] if request.per_class else []:
            labels_as_in(reference, each)  # to fail before hours of extraction
        if request.tsne is not None:
            shown_classes(reference, request.classes)
        scored: dict[str, list[Measurement]] = {}
        with keeping(lambda: _what_is_scored(scorer, reference, scored, len(sets))):
            for each in sets:
                scored[each.name] = scorer.measure(reference, each)
            for each in sets:
                _tell_of_copies(scorer, reference, each)
            notes, failed = _draw(request, scorer, reference, sets, training)
    if request.json_file is not None:
        try:
            write_json(request.json_file, _record(scorer, reference, scored) | {"notes": [*notes, *failed]})
            notes.append(f"written: {request.json_file}")
        except AttnbenchError as error:
            failed.append(f"--json: {error}")
    print_table(scores_table(scorer, reference, scored, notes))
    for reason in failed:
        print_notice(f"error: {reason}")
    return int(bool(failed))


def _what_is_scored(
    scorer: Scorer, reference: Reference, scored: Mapping[str, Sequence[Measurement]], asked: int
) -> str:
    """Print the scores of an interrupted evaluation; return what to say of them."""
    if scored:
        print_table(scores_table(scorer, reference, scored, []))
    return f"{len(scored)} of {asked} sets are scored; {_FEATURES_ARE_KEPT}"


def _scorer(request: EvaluationRequest, runs: Path, device: str, progress: Progress) -> Scorer:
    return make_scorer(
        request.settings, features_folder(runs / STORE), torch.device(chosen_device(device)), progress
    )


def _check_early(
    request: EvaluationRequest, settings: EvaluateSpec, sets: Sequence[ImageCollection], own: OwnData | None
) -> ImageCollection | None:
    """Raise UserInputError for settings that do not fit the numbers of images, before any extraction.

    Returns the reference's images where it has opened them.
    """
    if request.reference is None:
        assert own is not None  # or there would be no reference at all
        real = own.reference()
    elif "meta" in holds(request.reference):
        return None  # a reference file says its number at once
    elif holds_statistics_alone(request.reference):
        return None  # it counts no images
    else:
        real = open_images(request.reference, allow_jpeg=True, image_size=request.image_size)
    for images in sets:
        check_sizes(settings, len(images), min(len(real), settings.reference_images))
    return real


def _tell_of_copies(scorer: Scorer, reference: Reference, images: ImageCollection) -> None:
    """Warn of images that are the reference's own: a folder given twice scores like a perfect model."""
    found = identical_images(scorer.digests(images), reference.features.digests)
    copies = int((found >= 0).sum())
    if copies:
        scorer.warn(
            f"{copies:,} of the {len(images):,} images of {images.name} are images of the reference "
            f"{reference.name}, pixel by pixel: its distances are smaller than those of new images"
        )


def build_reference(
    folder: Path,
    target: Path,
    settings: EvaluateSpec,
    *,
    image_size: int | None,
    runs: Path,
    device: str,
    quiet: bool,
) -> Reference:
    """Make a reference file of a set of real images; raises UserInputError, StorageError."""
    if target.exists() and folder.exists() and target.samefile(folder):
        raise UserInputError(f"{target} holds the images themselves; give --to another name")
    if target.suffix != ".npz":
        raise UserInputError(f"a reference file ends in .npz, got {target}; give --to {target.stem}.npz")
    check_target(target, "--to")
    with (
        keeping(f"{target} is not written; {_FEATURES_ARE_KEPT}"),
        progress_bar("reference", quiet=quiet) as progress,
    ):
        scorer = make_scorer(
            settings, features_folder(runs / STORE), torch.device(chosen_device(device)), progress
        )
        reference = scorer.reference_from(open_images(folder, allow_jpeg=True, image_size=image_size))
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


def _draw(
    request: EvaluationRequest,
    scorer: Scorer,
    reference: Reference,
    sets: Sequence[ImageCollection],
    training: ImageCollection | None,
) -> tuple[list[str], list[str]]:
    """Write the pictures that were asked for; return what there is to say of them, and why others are not."""
    images, notes, failed = sets[0], list[str](), list[str]()

    def per_class(path: Path) -> None:
        scores = by_class(
            reference.features.pooled,
            reference.labels,
            scorer.features(images).pooled,
            labels_as_in(reference, images),
            class_names(reference),
            neighbours=scorer.settings.neighbours,
            at_least=max(10, scorer.settings.neighbours + 1),
        )
        write_csv(scores, path.with_suffix(".csv"))
        class_figure(scores, path.with_suffix(".png"), called=scorer.called, heading=images.name)
        notes.append(f"written: {path.with_suffix('.png')} and .csv, of {images.name}")

    def nearest(path: Path) -> None:
        assert training is not None  # it is opened where this is asked for
        notes.append(draw_nearest(path, scorer, images, training))
        notes.append(f"written: {path}; images are counted from 0 in their order of opening")

    def tsne(path: Path) -> None:
        draw_tsne(path, scorer, sets, reference, request.classes)
        notes.append(f"written: {path}, with .csv and .json beside it")

    for option, path, draw in (
        ("--per-class", request.per_class, per_class),
        ("--nearest", request.nearest, nearest),
        ("--tsne", request.tsne, tsne),
    ):
        if path is None:
            continue
        try:
            draw(path)
        except AttnbenchError as error:
            failed.append(f"{option}: {error}; the scores above do not depend on it")
        except Exception as error:  # noqa: BLE001 - a library's, which must not cost the scores
            said = f"{type(error).__name__}: {error}"
            failed.append(f"{option}: not drawn ({said}); the scores above do not depend on it")
    return notes, failed


def _record(scorer: Scorer, reference: Reference, scored: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Return everything as plain data, for --json."""
    return {
        "reference": {"name": reference.name, "images": len(reference), **_provenance(reference)},
        "settings": scorer.settings_for(reference).model_dump(mode="json"),
        "scored": {name: [m.model_dump(mode="json") for m in found] for name, found in scored.items()},
        "warnings": scorer.warnings,
        "environment": environment().model_dump(mode="json"),
    }


def _provenance(reference: Reference) -> dict[str, Any]:
    return {} if reference.provenance is None else reference.provenance.model_dump(mode="json")


def self_test(settings: EvaluateSpec, golden: Path | None, *, runs: Path, device: str) -> int:
    """Prove the metrics level by level, print every comparison, return the exit code."""

    def make(settings: EvaluateSpec) -> Scorer:
        return make_scorer(settings, features_folder(runs / STORE), torch.device(chosen_device(device)))

    registry().extractor(settings.extractor)  # a wrong name is an error, not a proof that did not run
    proofs = [*prove_maths(), *prove_network(make, settings), *prove_golden(make, settings, golden)]
    print_table(self_test_listing(proofs))
    return int(any(proof.status == "failed" for proof in proofs))
