"""What a run needs, and refuses for want of it: asked by `run` before it begins, `validate` and `plan`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from attnbench.errors import AttnbenchError, DataError, UnsupportedError
from attnbench.running.once import each_once, shared_by
from attnbench.specs import Case, PreparedData, UserImages
from attnbench.storage import hub
from attnbench.storage.names import RUN
from attnbench.storage.run_folders import read_run_record
from attnbench.suite.files import find_suite, is_shipped
from attnbench.suite.loading import Suite
from attnbench.suite.teachers import missing_teacher


def refusals(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return what keeps cases from running here, one sentence each, with the labels of these cases."""
    found: dict[str, list[str]] = {}
    with each_once():
        for case in cases:
            for text in missing_inputs(case):
                found.setdefault(text, []).append(case.label)
    return found


def source_of(suite: Suite) -> str:
    """Return how a run's record names its suite: a shipped one's name, or the absolute path of a file."""
    return suite.path.stem if is_shipped(suite.path) else str(suite.path.absolute())


def taken_by_another(suite: Suite, run_dir: Path) -> str:
    """Return why a suite cannot use a run's folder: another file's suite of its name has its report there.

    A file that was moved, or has a copy with the same content, is the same suite.
    """
    try:
        record = read_run_record(run_dir / RUN)
        if record is None or record.source == source_of(suite):
            return ""
        other = find_suite(record.source)
        is_same = other.samefile(suite.path) or other.read_bytes() == suite.path.read_bytes()
    except (AttnbenchError, OSError):  # the file is gone, or the record is damaged, which the run renews
        return ""
    if is_same:
        return ""
    return (
        f"{run_dir} holds the run of another suite called {suite.name}, {other}, whose report would be "
        f"replaced by that of {suite.path}; give one of them another name (-o name=NAME), or choose "
        "another folder with --runs"
    )


def skips(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return why cases would end without a result whose backends refuse them, with the labels of these."""
    from attnbench.running.estimates import model_side, num_classes, num_params

    found: dict[str, list[str]] = {}
    with each_once():
        for case in cases:
            try:
                num_params(case.model, model_side(case), num_classes(case))  # builds it on the meta device
                continue
            except UnsupportedError as error:
                reason = str(error)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's backend may raise anything
                reason = f"its model cannot be built: {type(error).__name__}: {error}"
            found.setdefault(reason, []).append(case.label)
    return found


def _inputs(case: Case) -> tuple[object, ...]:
    """Return what `missing_inputs` depends on; a case with a teacher is asked by itself."""
    train, evaluate = case.train, case.evaluate
    asked = (case.data.text(), train.init_from, evaluate.extractor, evaluate.weights, tuple(train.log))
    return asked if train.teacher is None else (*asked, case.id)


@shared_by(_inputs)
def missing_inputs(case: Case) -> tuple[str, ...]:
    """Return what of the user's a case needs and has not, one sentence each; imports no torch."""
    named = [("train.init_from", case.train.init_from), ("evaluate.weights", case.evaluate.weights)]
    if isinstance(case.data, UserImages):
        codec = case.data.codec
        named = [("data.path", case.data.path), ("data.codec.path", codec.path if codec else None), *named]
    absent = [(key, path) for key, path in named if path is not None and not path.exists()]
    said = [f"{key}: {path} does not exist; name yours with -o {key}=PATH" for key, path in absent]
    if isinstance(case.data, UserImages) and "data.path" not in dict(absent):
        from attnbench.data import class_names
        from attnbench.data.prepared import read_fitting_card

        try:
            if isinstance(case.data, PreparedData):
                read_fitting_card(case.data)
            class_names(case.data)
        except DataError as error:
            said.append(f"data.path: {error}")
    if missing := missing_teacher(case):
        said.append(missing)
    return (*said, *_missing_autoencoder(case), *_missing_weights(case), *_missing_packages(case))


def _missing_packages(case: Case) -> tuple[str, ...]:
    if "tensorboard" not in case.train.log or importlib.util.find_spec("tensorboard") is not None:
        return ()
    return (
        "train.log: tensorboard is asked for, but the package tensorboard is not installed; "
        "pip install tensorboard, or set train.log: [jsonl]",
    )


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
