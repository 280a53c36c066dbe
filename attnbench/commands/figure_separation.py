"""Figure 11 for `attnbench figures`: features of samples, which classes to show, their t-SNE."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from attnbench.commands.evaluate import settings_from
from attnbench.commands.evaluate_inputs import EvaluationRequest, own_data
from attnbench.commands.figure_samples import FigureCase, check_same_noise
from attnbench.console import progress_bar
from attnbench.devices import chosen_device
from attnbench.errors import UserInputError
from attnbench.evaluation.class_choice import choose_classes, named_classes
from attnbench.evaluation.close_classes import MOST_CLASSES, NEIGHBOURS
from attnbench.evaluation.figures import CLASS_CHOICE, PER_CLASS, PERPLEXITY, class_names, labels_as_in
from attnbench.evaluation.npz_files import open_npz_shards
from attnbench.evaluation.reference import Reference
from attnbench.evaluation.requirements import extractor_problems
from attnbench.evaluation.run_samples import finished_samples
from attnbench.evaluation.tsne import tsne_panels
from attnbench.report.paper_figures.families import model_of, without_shared
from attnbench.report.paper_figures.separation import Choice, Cloud, draw_separation, numbers
from attnbench.report.tables import plain
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.run_folders import case_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labelled = dict[str, tuple[torch.Tensor, torch.Tensor | None]]
_LEAST = 3  # samples of a class, or its neighbours cannot be of its own
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SeparationRequest:
    """What the user chose for figure 11."""

    classes: str | None = None
    """Names, `close:N` or `random:N`; None: both, five classes each."""
    extractor: str | None = None
    weights: Path | None = None


def separation_figure(
    cases: Sequence[FigureCase],
    request: SeparationRequest,
    folder: Path,
    *,
    device: str,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[Callable[[], Figure], str]:
    """Return what draws figure 11, and its caption; writes `figure-11.json` with the numbers.

    Raises UserInputError or DataError where the cases differ in noise or data, or samples are missing.
    """
    finished = [case for case in cases if case.result.status == "ok"]
    folders = {id(case): finished_samples(case.folder, case.result) for case in finished}
    shown = [case for case in finished if folders[id(case)] is not None]
    if len(shown) < 2:
        raise UserInputError(
            f"figure 11 compares the features of samples, and {len(shown)} of {len(cases)} cases have them "
            "in the store beside their run; run the suite (again)"
        )
    if len(shown) < len(finished):
        lost = ", ".join(plain(c.result.label) for c in finished if folders[id(c)] is None)
        say(f"figure 11 without {lost}: not in the store beside the run any more")
    check_same_noise("11", [c.result for c in shown], [case_of(c.folder, c.result) for c in shown])
    asked = EvaluationRequest(
        samples=shown[0].folder,
        reference=None,
        settings=settings_from(extractor=request.extractor, weights=request.weights),
        case=shown[0].result.case_id,
    )
    with progress_bar("figure 11", quiet=quiet) as progress:
        own = own_data(asked, shown[0].folder.parent, torch.device(chosen_device(device)))
        assert own is not None  # no reference is named, so the run's own images are
        scorer = own.scorer(asked, progress)
        for _, problem in extractor_problems(scorer.settings, scorer.cache.extractor.record):
            raise UserInputError(problem)
        reference = scorer.reference_from(own.reference())
        panels: Labelled = {}
        called = without_shared([model_of(case.result).series for case in shown])
        for case in sorted(shown, key=lambda case: model_of(case.result).place):
            model = model_of(case.result)
            name = f"{called[model.series]} {model.size}".strip()
            images = open_npz_shards(folders[id(case)] or folder, name=name)
            panels[images.name] = (scorer.features(images).pooled, labels_as_in(reference, images))
        panels["real images"] = (reference.features.pooled, reference.labels)
        extractor = scorer.settings.extractor
        choices = [
            _choice(letter, how, panels, reference)
            for letter, how in zip("ab", _choices(request.classes, reference), strict=False)
        ]
    heading = (
        f"t-SNE of {extractor} features; each panel is embedded on its own: compare the numbers below, which "
        f"are of\nthe feature space (share of images whose class is that of most of their "
        f"{choices[0].clouds[0].neighbours} nearest others)"
    )
    settings = {"figure": "11", "extractor": extractor, "seed": _SEED}
    _write_numbers(folder / "figure-11.json", numbers(choices, settings))
    caption = (
        f"t-SNE of {extractor} features of samples from the same noise and classes, and of real images: "
        + "; ".join(f"({choice.letter}) {choice.words}: {', '.join(choice.names)}" for choice in choices)
        + ". Below each panel how well its classes separate in the feature space itself."
    )
    return partial(draw_separation, choices, heading), caption


def _choices(classes: str | None, reference: Reference) -> list[str]:
    """Return the ways in which classes are chosen; one where there are no more classes than are shown."""
    if classes is not None:
        return [classes]
    assert reference.labels is not None  # `labels_as_in` has looked
    count = len(reference.labels.unique())
    return (
        [f"random:{MOST_CLASSES}", f"close:{MOST_CLASSES}"] if count > MOST_CLASSES else [f"random:{count}"]
    )


def _choice(letter: str, how: str, panels: Labelled, reference: Reference) -> Choice:
    names = class_names(reference)
    assert reference.labels is not None  # `labels_as_in` has looked
    found = CLASS_CHOICE.match(how)
    if found is None:
        chosen, words = named_classes([name.strip() for name in how.split(",")], names), "chosen classes"
    else:
        way: Literal["close", "random"] = "close" if found["how"] == "close" else "random"
        real = reference.features.pooled
        chosen = choose_classes(
            reference.labels, real, int(found["count"]), way, seed=_SEED, num_classes=len(names)
        )
        words = "classes that lie close to each other in real images" if way == "close" else "random classes"
    counts = {
        c: min(PER_CLASS, *(int((own == c).sum()) for _, own in panels.values() if own is not None))
        for c in chosen
    }
    _check_counts(counts, panels, names)
    _, drawn = tsne_panels(
        panels,
        names,
        classes=chosen,
        per_class=PER_CLASS,
        perplexity=min(PERPLEXITY, max(1.0, sum(counts.values()) / 3)),
        seed=_SEED,
        neighbours=min(NEIGHBOURS, min(counts.values()) - 1),
    )
    clouds = [
        Cloud(
            title=panel.title,
            points=panel.points.numpy(),
            labels=panel.labels.numpy(),
            accuracy=panel.separability.accuracy,
            chance=panel.separability.chance,
            silhouette=panel.separability.silhouette,
            neighbours=panel.separability.neighbours,
        )
        for panel in drawn
    ]
    return Choice(letter=letter, words=words, classes=chosen, names=[names[c] for c in chosen], clouds=clouds)


def _check_counts(counts: dict[int, int], panels: Labelled, names: Sequence[str]) -> None:
    for label, count in counts.items():
        if count < _LEAST:
            found = {title: own for title, (_, own) in panels.items() if own is not None}
            who = ", ".join(plain(title) for title, own in found.items() if (own == label).sum() < _LEAST)
            raise UserInputError(
                f"figure 11: {who} has {count} images of class {names[label]!r}, at least {_LEAST} are "
                "needed; choose other --classes, or sample more (sample.per_class)"
            )


def _write_numbers(path: Path, found: dict[str, object]) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(found, indent=2, ensure_ascii=False).encode() + b"\n")
