"""What `attnbench evaluate` is given: sets of images and the data that a run was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attnbench.data import Dataset, load_dataset
from attnbench.errors import UserInputError
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.dataset_images import dataset_images
from attnbench.evaluation.images import open_images
from attnbench.evaluation.reference import holds
from attnbench.evaluation.scorer import Scorer
from attnbench.evaluation.statistics_files import holds_statistics_alone
from attnbench.progress import Progress
from attnbench.results import latest, read_results
from attnbench.specs import Case, EvaluateSpec
from attnbench.stages.scored_images import load_scorer, training_images
from attnbench.storage.names import RESULTS
from attnbench.storage.run_folders import case_of, choose_result, store_of
from attnbench.storage.store import Workspace

TRAINED_ON_THE_DATA = "digits-cnn"  # the built-in extractor that is trained on the data it judges


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What the user asked `attnbench evaluate` for."""

    samples: Path
    reference: Path | None
    """None: the real images of the run's own data, scored with the settings of its suite."""
    settings: EvaluateSpec
    image_size: int | None = None
    """Side that real images of any size are cut to; None: they are of one size."""
    case: str | None = None
    also: tuple[str, ...] = ()
    """Other sets for the same table: another model (a case as RUN:CASE), held-out images as a floor."""
    training: Path | None = None
    """Where nearest images are looked for; None: in the reference."""
    json_file: Path | None = None
    per_class: Path | None = None
    nearest: Path | None = None
    tsne: Path | None = None
    classes: str | None = None


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The data that a run's case was trained on, for its reference and for a network trained on it."""

    case: Case
    dataset: Dataset
    workspace: Workspace

    def scorer(self, request: EvaluationRequest, progress: Progress) -> Scorer:
        """Return the scorer; what the user leaves open is as in the suite where no reference is named."""
        asked, settings = request.settings, request.settings
        if request.reference is None:
            named = {key: getattr(asked, key) for key in asked.model_fields_set}
            if asked.extractor != self.case.evaluate.extractor and "extractor" in named:
                named.setdefault("weights", None)  # the suite's file is another network's
            settings = self.case.evaluate.model_copy(update=named)
        case = self.case.model_copy(update={"evaluate": settings})
        if settings.extractor == TRAINED_ON_THE_DATA and asked.weights is not None:
            raise UserInputError(
                f"--weights {asked.weights}: {TRAINED_ON_THE_DATA} takes no file, it is trained on the run's "
                "data; leave --weights out, or choose another network with --extractor"
            )
        training = training_images(self.case, self.dataset, self.workspace)
        return load_scorer(case, self.workspace, training, progress)

    def reference(self) -> ImageCollection:
        """Return the real images that the suite compares with; raises DataError where there are none."""
        return dataset_images(self.dataset, self.case.evaluate.reference)

    def training(self) -> ImageCollection:
        """Return the images that the model was trained on."""
        return dataset_images(self.dataset, "train")


def own_data(request: EvaluationRequest, runs: Path, device: torch.device) -> OwnData | None:
    """Return the run's own data where it is needed, else None; raises UserInputError where there is none."""
    trained = request.settings.extractor == TRAINED_ON_THE_DATA
    if request.reference is not None and not trained:
        return None
    run_dir = _place(request.samples, runs)
    if not (run_dir / RESULTS).is_file():
        open_images(run_dir, case=request.case)  # its own error first, where there are no images at all
        why, other = "real images are needed", "name a folder or file with --reference"
        if trained:
            why = f"extractor {TRAINED_ON_THE_DATA} is trained on a suite's data"
            other = "choose another with --extractor"
        raise UserInputError(
            f"{why}, and {run_dir} is no run that says which; name a run's case "
            f"(attnbench evaluate RUN --case LABEL), or {other}"
        )
    case = case_of(run_dir, choose_result(run_dir, request.case))
    workspace = Workspace(root=store_of(run_dir), device=device)
    return OwnData(case=case, dataset=load_dataset(case.data), workspace=workspace)


def open_sets(request: EvaluationRequest, runs: Path) -> list[ImageCollection]:
    """Open all sets to be scored, under names that differ: the path where a run's label comes twice."""
    sets = [open_images(_place(request.samples, runs), case=request.case)]
    for word in request.also:
        images = _open_also(word, runs)
        if images.name in (each.name for each in sets):
            images = replace(images, name=word)
        if images.name in (each.name for each in sets):
            raise UserInputError(f"--also {word}: this set is named already; name each set once")
        sets.append(images)
    return sets


def _open_also(word: str, runs: Path) -> ImageCollection:
    """Open a set named as --also names it: a path, a run, or a run's case as RUN:CASE."""
    if not word.partition(":")[0]:
        raise UserInputError(f"--also {word!r} names nothing; give a folder, an npz, a run, or RUN:CASE")
    place, case = _place(Path(word), runs), None
    if not place.exists() and ":" in word:
        name, _, case = word.partition(":")
        place = _place(Path(name), runs)
    if (place / RESULTS).is_file() and case is None:
        labels = [result.label for result in latest(read_results(place / RESULTS))]
        if len(labels) > 1:
            raise UserInputError(
                f"--also {word}: this run has {len(labels)} cases ({', '.join(labels)}); name one, such as "
                f"--also '{word}:{labels[0]}'"
            )
    return open_images(place, case=case, allow_jpeg=True)


def _place(samples: Path, runs: Path) -> Path:
    """Return where samples lie: as the user says, or the run of that name below the runs folder."""
    return runs / samples if not samples.exists() and (runs / samples).is_dir() else samples


def open_training(request: EvaluationRequest, own: OwnData | None) -> ImageCollection | None:
    """Open the images that --nearest looks through; None where it is not asked for."""
    if request.nearest is None:
        if request.training is not None:
            raise UserInputError("--training names what --nearest looks through; give --nearest, or neither")
        return None
    source = request.training or request.reference
    if source is None:
        assert own is not None  # the run's data stand for the reference that is not named
        return own.training()
    if request.training is None and ("meta" in holds(source) or holds_statistics_alone(source)):
        raise UserInputError(
            f"--nearest shows training images, and {source} holds none; name the images with --training"
        )
    return open_images(source, allow_jpeg=True, image_size=request.image_size)
