"""From a suite's run folder to one of its trained models."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from attnbench import __version__
from attnbench.data import load_dataset
from attnbench.errors import DataError, UnknownNameError, UserInputError
from attnbench.exchange.exported import BackendOrigin, CodecInfo, Exported, ExportedConfig
from attnbench.plugins import registry
from attnbench.results import Result, latest, read_results
from attnbench.specs import Case, UserImages
from attnbench.stages.checkpoint import ModelInput, load_averaged
from attnbench.stages.latents import INDEX, LatentIndex
from attnbench.stages.store import read_output, read_record
from attnbench.stages.train import AVERAGED

RESULTS = "results.jsonl"


def find_case(run_dir: Path, wanted: str | None = None) -> Case:
    """Return the case of a run folder with that label or id; None: its only case.

    Raises UserInputError when there is no run, no such case, or more than one.
    """
    if not (run_dir / RESULTS).is_file():
        raise UserInputError(
            f"{run_dir} is not the folder of a run: {RESULTS} is missing; name one such as runs/quick, which "
            "`attnbench run` writes"
        )
    results = latest(read_results(run_dir / RESULTS))
    if not results:
        raise UserInputError(f"{run_dir / RESULTS} holds no results yet; run the suite first")
    found = [r for r in results if wanted is None or wanted in (r.label, r.case_id)]
    if not found:
        raise UnknownNameError(f"case of {run_dir}", wanted or "", [r.label for r in results])
    if len(found) > 1:
        raise UserInputError(
            f"{run_dir} has {len(found)} cases{_as_asked(wanted)}; choose one: {_listed(found)}"
        )
    try:
        return Case.model_validate_json(json.dumps(found[0].case))
    except ValidationError as error:
        raise UserInputError(
            f"{run_dir / RESULTS}: the settings of case {found[0].label!r} are of another attnbench "
            f"({error.errors()[0]['msg']}); run the suite again"
        ) from error


def _as_asked(wanted: str | None) -> str:
    return "" if wanted is None else f" called {wanted!r} (its suite has been changed in between)"


def _listed(results: list[Result]) -> str:
    """Return --case arguments that are unambiguous: labels, or ids where a label stands for several."""
    labels = [r.label for r in results]
    return ", ".join(
        f"--case {r.case_id} ({r.label}, {r.created})" if labels.count(r.label) > 1 else f"--case {r.label!r}"
        for r in results
    )


def trained_model(case: Case, store: Path) -> Exported:
    """Return the averaged weights of a finished training with everything needed to use them.

    `store` is the folder `store` beside the run's. Raises UserInputError when the training is not
    finished and CheckpointError when its file is damaged.
    """
    key = case.key("train")
    folder = store / "train" / key
    if read_output(folder) is None:
        state = "is not finished" if folder.is_dir() else "is not in the store"
        raise UserInputError(
            f"the training of case {case.label!r} {state} ({folder}); run the suite {case.suite} again, it "
            "goes on from the last checkpoint"
        )
    weights, model_input = load_averaged(folder / AVERAGED, key)
    return Exported(config=_describe(case, model_input, store), weights=weights)


def _describe(case: Case, model_input: ModelInput, store: Path) -> ExportedConfig:
    return ExportedConfig(
        attnbench=__version__,
        model=case.model,
        input=model_input,
        class_names=_class_names(case, model_input.num_classes),
        objective=case.train.objective,
        codec=_codec(case, store),
        backends=origins(case.model.attention_names(), case.code),
        seed=case.seed,
        training=case.train.model_dump(mode="json"),
        data=f"{case.data.name} at {case.data.image_size} px",
        suite=case.suite,
        label=case.label,
    )


def origins(names: set[str], code: dict[str, str] | None = None) -> dict[str, BackendOrigin]:
    """Return who provides these backends, with the fingerprints of `code` where it has them."""
    found = {}
    for name in sorted(names):
        provided = registry().backends.get(name)
        told = (code or {}).get(name)
        found[name] = BackendOrigin(
            provider=provided.origin if provided else "unknown",
            code=told if told is not None else provided.code if provided else "",
        )
    return found


def _class_names(case: Case, num_classes: int) -> list[str] | None:
    """Return the data's class names, or None where the data is not here any more."""
    if isinstance(case.data, UserImages) and not case.data.path.is_dir():
        return None
    names = list(load_dataset(case.data).class_names)
    if len(names) != num_classes:
        raise DataError(
            f"the data {case.data.name} has {len(names)} classes now, the model was trained with "
            f"{num_classes}: the data changed since; restore it, or move it away to export without "
            "class names"
        )
    return names


def _codec(case: Case, store: Path) -> CodecInfo | None:
    """Return what `prepare` noted about the autoencoder when it made the latents."""
    if case.model.input != "latent":
        return None
    path = store / "prepare" / case.key("prepare") / INDEX
    index = read_record(path, LatentIndex)
    if index is None:
        raise DataError(f"{path} is missing or damaged; run the suite {case.suite} again")
    return CodecInfo(kind=index.kind, scale=index.scale, shift=index.shift, fingerprint=index.codec)
