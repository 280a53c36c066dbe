"""Stage `prepare`: what training reads and how samples become images, for pixels and latents."""

from __future__ import annotations

import functools
from pathlib import Path

from attnbench.data import Dataset, load_dataset
from attnbench.evaluation.scores import check_sizes
from attnbench.results import Measurement
from attnbench.specs import Case, CodecSpec
from attnbench.stages.latents.codec import fingerprint, on_hub
from attnbench.stages.latents.encoding import encode_all
from attnbench.stages.latents.model_space import MadeFrom, codec_of, refuse_changed, which_codec
from attnbench.storage import hub
from attnbench.storage.names import DONE, LATENT_INDEX, MADE_FROM
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import StageOutput, Workspace, write_output

NAMED = 20  # files named one by one in a report; the rest are counted


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Encode the training images where the data names an autoencoder; other data needs nothing.

    Raises DataError when images or autoencoder cannot be had or used, or are others than in an earlier run.
    """
    dataset, codec = load_dataset(case.data), codec_of(case)
    workspace.datasets[case.data] = dataset
    reference = dataset.train if case.evaluate.reference == "train" else dataset.held_out
    # here, because finding out after the training would waste it
    check_sizes(case.evaluate, case.sample.per_class * dataset.num_classes, len(reference))
    folder = workspace.folder("prepare", case)
    with workspace.holding(folder):
        _check_unchanged(case, folder, _made_from(dataset, codec, workspace), workspace)
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        if codec is not None:
            encode_all(dataset.train, codec, dataset.image_size, folder, workspace)
        output = StageOutput(measurements=_left_out(dataset))
        write_output(folder, output)
        return output


def dataset_of(case: Case, workspace: Workspace) -> Dataset:
    """Return the dataset as this stage has loaded and checked it, or load it here; raises DataError."""
    if case.data not in workspace.datasets:
        workspace.datasets[case.data] = load_dataset(case.data)
    dataset: Dataset = workspace.datasets[case.data]
    return dataset


def _made_from(dataset: Dataset, codec: CodecSpec | None, workspace: Workspace) -> MadeFrom:
    """Return what this stage works on; an autoencoder on the hub is fetched, here and nowhere else."""
    if codec is None:
        return MadeFrom(data=dataset.fingerprint, codec="")
    model = on_hub(codec)
    commit = hub.fetch(model, functools.partial(workspace.report, "prepare")).commit if model else ""
    return MadeFrom(data=dataset.fingerprint, codec=fingerprint(codec), commit=commit)


def _check_unchanged(case: Case, folder: Path, now: MadeFrom, workspace: Workspace) -> None:
    """Note what this stage works on; raises DataError where the note of an earlier run says otherwise."""
    before = read_record(folder / MADE_FROM, MadeFrom, workspace.made_again)
    begun = any((folder / name).exists() for name in (DONE, LATENT_INDEX))
    if before is None or not begun:
        write_record(folder / MADE_FROM, now)
    elif not before.of_same_files(now):
        refuse_changed("images in data.path" if before.data != now.data else which_codec(case), folder)


def _left_out(dataset: Dataset) -> list[Measurement]:
    """Name and count the files that failed to open."""
    if not dataset.unreadable:
        return []
    shown, more = dataset.unreadable[:NAMED], len(dataset.unreadable) - NAMED
    names = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return [Measurement(name="unreadable_images", values=[len(dataset.unreadable)], note=names)]
