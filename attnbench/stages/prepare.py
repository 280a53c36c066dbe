"""Stage `prepare`: what training reads and how samples become images, for pixels and latents."""

from __future__ import annotations

import functools
from pathlib import Path

from attnbench.data import Dataset, load_dataset
from attnbench.errors import DataError
from attnbench.evaluation.requirements import check_sizes
from attnbench.results import Measurement
from attnbench.specs import Case, CodecSpec
from attnbench.stages.latents.codec import fingerprint, load_codec
from attnbench.stages.latents.encoding import encode_all
from attnbench.stages.latents.latent_space import on_hub
from attnbench.stages.latents.model_space import (
    MadeFrom,
    codec_of,
    latent_problems,
    refuse_changed,
    which_codec,
)
from attnbench.storage import hub
from attnbench.storage.names import DONE, LATENT_INDEX, MADE_FROM
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import (
    NOTICE,
    StageOutput,
    Workspace,
    read_output,
    write_output,
)
from attnbench.yaml_source import show_path

NAMED = 20  # files named one by one in a report; the rest are counted


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Encode the training images where the data names an autoencoder; other data needs nothing.

    Raises DataError when images or autoencoder cannot be had or used, or are others than in an earlier run.
    """
    folder, codec = workspace.folder("prepare", case), codec_of(case)
    # before the images, which may take hours: fetch the autoencoder, ask it for its grid, read its weights
    commit = _fetched(codec, workspace) if codec is not None else ""
    for problem in latent_problems(case):
        raise DataError(f"{case.label}: {show_path(problem.path)}: {problem.message}")
    if codec is not None and read_output(folder) is None:
        load_codec(codec, workspace.device)
    dataset = load_dataset(case.data)
    workspace.datasets[case.data] = dataset
    reference = dataset.train if case.evaluate.reference == "train" else dataset.held_out
    # here, because finding out after the training would waste it
    kept = min(len(reference), case.evaluate.reference_images)
    check_sizes(case.evaluate, case.sample.per_class * dataset.num_classes, kept)
    now = MadeFrom(data=dataset.fingerprint, codec=fingerprint(codec) if codec else "", commit=commit)
    with workspace.holding(folder):
        _check_unchanged(case, folder, now, dataset, workspace)
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        for remark in (*dataset.remarks, *_unreadable(dataset)):
            workspace.report(NOTICE, 0, 0, remark)
        if codec is not None:
            encode_all(dataset.train, codec, folder, workspace)
        output = StageOutput(measurements=_left_out(dataset), class_names=list(dataset.class_names))
        write_output(folder, output)
        return output


def dataset_of(case: Case, workspace: Workspace) -> Dataset:
    """Return the dataset as this stage has loaded and checked it, or load it here; raises DataError."""
    if case.data not in workspace.datasets:
        workspace.datasets[case.data] = load_dataset(case.data)
    dataset: Dataset = workspace.datasets[case.data]
    return dataset


def _fetched(codec: CodecSpec, workspace: Workspace) -> str:
    """Fetch an autoencoder on the hub, here and nowhere else; return its commit, nothing for a folder."""
    model = on_hub(codec)
    return hub.fetch(model, functools.partial(workspace.report, "prepare")).commit if model else ""


def _check_unchanged(case: Case, folder: Path, now: MadeFrom, dataset: Dataset, workspace: Workspace) -> None:
    """Note what this stage works on; raises DataError where the note of an earlier run says otherwise.

    What an earlier attnbench did not note is taken as it is now.
    """
    before = read_record(folder / MADE_FROM, MadeFrom, workspace.made_again)
    begun = any((folder / name).exists() for name in (DONE, LATENT_INDEX))
    known = before if begun else None
    workspace.report("prepare", 0, 0, "comparing the files with those of earlier runs")
    now = now.with_images(dataset, known)
    if known is not None and not known.of_same_files(now):
        images = known.codec == now.codec
        refuse_changed("images in data.path" if images else which_codec(case), folder)
    if known is None or (known.written, known.content) != (now.written, now.content):
        write_record(folder / MADE_FROM, now)


def _unreadable(dataset: Dataset) -> list[str]:
    """Say at once what `_left_out` keeps for the report."""
    few = "; ".join(dataset.unreadable[:3])
    return (
        [f"{len(dataset.unreadable):,} images cannot be read and are left out, such as {few}"] if few else []
    )


def _left_out(dataset: Dataset) -> list[Measurement]:
    """Name and count the files that failed to open."""
    if not dataset.unreadable:
        return []
    shown, more = dataset.unreadable[:NAMED], len(dataset.unreadable) - NAMED
    names = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return [Measurement(name="unreadable_images", values=[len(dataset.unreadable)], note=names)]
