"""Between images and what the model sees: the images themselves, or latents of the user's autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol

import torch

from attnbench.data import Dataset
from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError, UserInputError
from attnbench.results import Record
from attnbench.specs import Case, CodecSpec, UserImages
from attnbench.stages.latents.codec import fingerprint, load_codec
from attnbench.stages.latents.encoding import open_latents
from attnbench.storage.names import MADE_FROM
from attnbench.storage.records import read_record
from attnbench.storage.store import Workspace

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
    commit: str = ""
    """Commit of an autoencoder on the hub; a later one with the same files makes no difference."""

    def of_same_files(self, other: MadeFrom) -> bool:
        """Say whether both are of the same content."""
        return (self.data, self.codec) == (other.data, other.codec)


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
