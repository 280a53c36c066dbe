"""From a suite's run folder to one of its trained models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from attnbench.data import class_names
from attnbench.errors import DataError, UserInputError
from attnbench.exchange.config import BackendOrigin, CodecInfo, ExportedConfig
from attnbench.exchange.exported import Exported
from attnbench.plugins import registry
from attnbench.specs import Case, UserImages
from attnbench.stages.latents.encoding import LatentIndex
from attnbench.stages.latents.latent_space import on_hub
from attnbench.stages.latents.model_space import MadeFrom, codec_of
from attnbench.stages.training.checkpoint import ModelInput, load_averaged
from attnbench.storage.names import AVERAGED, LATENT_INDEX, MADE_FROM
from attnbench.storage.records import read_record
from attnbench.storage.run_folders import case_of, choose_result
from attnbench.storage.store import read_output


def find_case(run_dir: Path, wanted: str | None = None) -> Case:
    """Return the case of a run folder with that label or id; None: its only case. Raises UserInputError."""
    return case_of(run_dir, choose_result(run_dir, wanted))


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
    names = list(class_names(case.data))
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
    folder = store / "prepare" / case.key("prepare")
    index = read_record(folder / LATENT_INDEX, LatentIndex)
    made_from = read_record(folder / MADE_FROM, MadeFrom)
    if index is None:
        raise DataError(f"{folder / LATENT_INDEX} is missing or damaged; run the suite {case.suite} again")
    codec = codec_of(case)
    model = on_hub(codec) if codec is not None else None
    commit = made_from.commit if made_from is not None else ""
    return CodecInfo(
        kind=index.kind,
        scale=index.scale,
        shift=index.shift,
        fingerprint=index.codec,
        hub=dataclasses.replace(model, revision=commit or model.revision).title if model else "",
    )
