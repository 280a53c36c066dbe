"""Between images and what the model sees: the images themselves, or latents of the user's autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol

import torch

from attnbench.data import Dataset
from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError, UserInputError
from attnbench.models.resolution import LATENT_FACTOR, input_size
from attnbench.problems import Problem
from attnbench.results import Record
from attnbench.specs import Case, CodecSpec, UserImages
from attnbench.stages.latents.codec import fingerprint, load_codec
from attnbench.stages.latents.encoding import open_latents
from attnbench.stages.latents.latent_space import known_latent_space, on_hub
from attnbench.storage.names import MADE_FROM
from attnbench.storage.records import read_record
from attnbench.storage.store import Workspace
from attnbench.yaml_source import KeyPath

Decoder = Callable[[torch.Tensor], torch.Tensor]  # float [B, C, h, w] -> uint8 [B, H, W, C]


class TrainingSource(Protocol):
    """Training examples in the model's input space."""

    @property
    def labels(self) -> torch.Tensor:
        """Class of every example, int64 [N]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the model's input."""

    def __len__(self) -> int:
        """Return the number of examples, N."""

    @property
    def has_posterior(self) -> bool:
        """Whether examples are distributions to draw from."""

    def batch(
        self, indices: torch.Tensor, flips: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return float32 [B, C, H, W] examples.

        `indices` int64 [B]; `flips` bool [B], mirrored where true; `draws` [B, C, H, W], standard normal,
        where examples have a posterior; without them its mean.
        """


@dataclass(frozen=True)
class PixelSource:
    """The training images themselves, scaled to [-1, 1]."""

    dataset: Dataset

    @property
    def labels(self) -> torch.Tensor:
        """Class of every image, int64 [N]."""
        return self.dataset.train.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.dataset.channels, self.dataset.image_size, self.dataset.image_size

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.dataset.train)

    has_posterior: ClassVar[bool] = False

    def batch(
        self, indices: torch.Tensor, flips: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return float32 [B, C, H, W] images in [-1, 1], mirrored left to right where `flips`."""
        x = to_model_space(self.dataset.train.get(indices))
        return torch.where(flips[:, None, None, None], x.flip(-1), x)


class MadeFrom(Record):
    """What the user's files held when a stage read them first: their places alone are in its key."""

    data: str
    codec: str
    written: str = ""
    """When the image files were written, as a hash; empty where it is not known."""
    content: str = ""
    """SHA-256 of their bytes, likewise."""
    commit: str = ""
    """Commit of an autoencoder on the hub; a later one with the same files makes no difference."""

    def with_images(self, dataset: Dataset, before: MadeFrom | None) -> MadeFrom:
        """Return this note with the dataset's files; they are read, unless written when `before` says.

        A copy changes the times of files, so that times alone tell nothing of their content.
        """
        if dataset.files is None:
            return self
        written = dataset.files.written
        known = before is not None and before.written == written
        content = before.content if before is not None and known else dataset.files.content
        return self.model_copy(update={"written": written, "content": content})

    def of_same_files(self, other: MadeFrom) -> bool:
        """Say whether both are of the same content, as far as both know it."""
        contents = {made.content for made in (self, other) if made.content}
        return (self.data, self.codec) == (other.data, other.codec) and len(contents) < 2


def training_source(case: Case, dataset: Dataset, workspace: Workspace) -> TrainingSource:
    """Return what the train stage reads batches from: images, or latents that `run` has made.

    Raises UserInputError when the model's input is not what the data gives.
    """
    source: TrainingSource = PixelSource(dataset)
    if case.model.input == "latent":
        folder = workspace.folder("prepare", case)
        source = open_latents(folder, _needed_codec(case), dataset.train.labels)
    if source.shape[0] != case.model.in_channels:
        raise UserInputError(
            f"model {case.model.name} takes {case.model.in_channels} channels, {case.data.name} gives "
            f"{source.shape[0]}; set model.in_channels to {source.shape[0]}"
        )
    return source


def decoder(case: Case, workspace: Workspace) -> Decoder:
    """Return the function from the model's space, float [B, C, h, w], to uint8 [B, H, W, C]."""
    if case.model.input == "pixel":
        return to_images
    codec, folder = _needed_codec(case), workspace.folder("prepare", case)
    before = read_record(folder / MADE_FROM, MadeFrom)
    if before is not None and before.codec != fingerprint(codec):  # days may lie between training and here
        refuse_changed(which_codec(case), folder)
    return load_codec(codec, workspace.device).decode


def codec_of(case: Case) -> CodecSpec | None:
    """Return the autoencoder that the data names, if any."""
    return case.data.codec if isinstance(case.data, UserImages) else None


def latent_factor(case: Case) -> int:
    """Return the side of an image over that of its latents, as the case's autoencoder makes them.

    8 where there is none, and while its config.json is not on this machine: `assumption` says so then. Raises
    DataError for an autoencoder that cannot be used.
    """
    codec = codec_of(case)
    space = None if codec is None else known_latent_space(codec)
    return LATENT_FACTOR if space is None else space.factor


def assumption(case: Case) -> str:
    """Return what sizes rest on while the autoencoder's config.json is not here, else nothing."""
    codec = codec_of(case)
    if case.model.input != "latent" or codec is None or known_latent_space(codec) is not None:
        return ""
    model = on_hub(codec)
    where = f"there is none in {codec.path}" if model is None else f"`{model.command}` fetches it"
    return (
        f"the autoencoder's config.json is not on this machine yet ({where}), so it is taken to divide the "
        f"side by {LATENT_FACTOR} and to make {case.model.in_channels} channels; the stage `prepare` checks "
        "that before any image is decoded"
    )


def latent_problems(case: Case) -> Iterator[Problem]:
    """Yield what keeps a model on latents from reading those of its autoencoder; a suite and `prepare` ask.

    An autoencoder that is not on this machine yet is taken for one that fits the model.
    """
    codec = codec_of(case)
    if case.model.input != "latent" or codec is None:
        return
    try:
        space = known_latent_space(codec)
    except DataError as error:
        yield Problem(("data", "codec"), str(error))
        return
    if space is not None and space.channels != case.model.in_channels:
        yield Problem(
            ("model", "in_channels"),
            f"must be {space.channels}, the channels of the autoencoder's latents, got "
            f"{case.model.in_channels} ({case.model.name})",
        )
    factor = LATENT_FACTOR if space is None else space.factor
    sides: list[tuple[KeyPath, int]] = [(("data", "image_size"), case.data.image_size)]
    sides += [(("profile", "resolutions", i), side) for i, side in enumerate(case.profile.resolutions or ())]
    for path, side in sides:
        try:
            input_size(case.model, side, factor)
        except UserInputError as error:
            assumed = f"; {assumption(case)}" if space is None else ""
            yield Problem(path, f"{error}{assumed}")


def _needed_codec(case: Case) -> CodecSpec:
    codec = codec_of(case)
    if codec is None:
        raise UserInputError(
            f"model {case.model.name} reads latents, but the data {case.data.name} has no codec; use "
            "prepared or image-folder with `codec`, or a recipe with `input: pixel`"
        )
    return codec


def which_codec(case: Case) -> str:
    codec = codec_of(case)
    return f"autoencoder in data.codec.{'hub' if codec is not None and codec.hub else 'path'}"


def refuse_changed(what: str, folder: Path) -> NoReturn:
    raise DataError(
        f"the {what} changed since results were made with them: the settings name the same place, but its "
        "files are others; choose another --runs folder, or restore the files (noted in "
        f"{folder / MADE_FROM})"
    )
