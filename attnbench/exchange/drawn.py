"""Images of a trained model, by the sampler of suites: of a run's case, or of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from attnbench.data.pixels import to_images
from attnbench.errors import DataError, UnknownNameError, UserInputError
from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.loading import instantiate, open_model
from attnbench.exchange.trained import find_case
from attnbench.problems import problems_in
from attnbench.progress import Progress
from attnbench.specs import (
    NOISE,
    Case,
    CodecSpec,
    DigitsData,
    EvaluateSpec,
    ProfileSpec,
    SampleSpec,
    TrainSpec,
)
from attnbench.stages.compatibility import check_sampler
from attnbench.stages.latents.codec import digest_of, fingerprint, load_codec
from attnbench.stages.latents.latent_space import folder_of, kind_of
from attnbench.stages.latents.model_space import Decoder, codec_of
from attnbench.stages.sampling.sampler import Sampler
from attnbench.storage.hub import model_files
from attnbench.storage.names import RESULTS
from attnbench.storage.store import Workspace
from attnbench.yaml_source import show_path

if TYPE_CHECKING:
    from PIL import Image

UNSTATED = {
    "flow": {"sampler": "euler", "num_steps": 50, "noise": NOISE},
    "ddpm": {"sampler": "ddpm", "num_steps": 250, "noise": NOISE},
}
"""How a model is sampled that has no suite, by the objective it was trained with."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Drawn images, uint8 [N, H, W, C], the class of each, int64 [N], and what the classes are called."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return one of them for looking at or saving: `samples.image(0).save("seven.png")`."""
        from PIL import Image

        pixels = self.images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def draw(
    source: Path,
    label: str | None,
    *,
    labels: Sequence[int | str] | None,
    count: int,
    seed: int | None,
    autoencoder: Path | None,
    settings: Mapping[str, Any],
    device: str,
    progress: Progress | None = None,
) -> Samples:
    """Draw images: of a run's case those that its suite draws first, with its settings but for `settings`.

    Image i starts from noise of (seed, i). `labels` are classes by number or name, an image each; without
    them `count` images are drawn as `sample.labels` has it. `device` is one that torch knows.
    Raises UserInputError, also for a setting that does not go with the model, and DataError.
    """
    _check_asked(labels, count, seed)
    exported = open_model(source, label)
    trained = find_case(source, label) if (source / RESULTS).is_file() else None
    case = _case(exported.config, trained, settings, seed)
    check_sampler(case)
    decode = _decoder(exported.config, trained, autoencoder, device)
    model_input, names = exported.config.input, tuple(exported.config.class_names or ())
    wanted = None if labels is None else _numbers(labels, model_input.num_classes, names)
    workspace = Workspace(
        root=source,
        device=torch.device(device),
        progress=lambda stage, done, total, note: progress(done, total, note) if progress else None,
    )
    sampler = _Asked(case, workspace, instantiate(exported, device), model_input, decode)
    sampler.wanted, sampler.count = wanted, count if wanted is None else len(wanted)
    if sampler.count < 1:
        raise UserInputError("nothing to draw: count is 1 or more, and labels name one class or more")
    drawn = sampler.draw(range(sampler.count))
    return Samples(
        images=np.asarray(drawn.images), labels=np.asarray(drawn.labels, np.int64), class_names=names
    )


def _check_asked(labels: Any, count: Any, seed: Any) -> None:
    """Refuse what is no number of images, no list of classes or no seed; raises UserInputError."""
    if not _is_whole(count) or count < 1:
        raise UserInputError(
            f"count is a number of images, a whole number from 1 on, got {count!r}; give one, as in count=16"
        )
    if labels is not None and (
        isinstance(labels, str | bytes) or not isinstance(labels, Sequence | np.ndarray | torch.Tensor)
    ):
        raise UserInputError(
            f"labels is a list of classes by number or name, got {labels!r}; put it in brackets, as in "
            f"labels=[{labels!r}]"
        )
    if seed is not None and not (_is_whole(seed) and 0 <= seed < 2**63):
        raise UserInputError(
            f"seed is a whole number from 0 to 2^63 - 1, got {seed!r}; give one, as in seed=0"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


class _Asked(Sampler):
    """The sampler of suites, for a number of images and, where they are given, classes of one's own."""

    wanted: list[int] | None = None
    count: int = 0

    @property
    def total(self) -> int:
        return self.count

    def labels(self, indices: range) -> torch.Tensor:
        if self.wanted is None:
            return super().labels(indices)
        return torch.tensor(self.wanted[indices.start : indices.stop])


def _case(
    config: ExportedConfig, trained: Case | None, settings: Mapping[str, Any], seed: int | None
) -> Case:
    """Return a case that draws what is asked for; of one that no suite made, only these parts mean anything.

    Raises UserInputError naming a wrong setting.
    """
    stated: dict[str, Any] = (
        dict(UNSTATED[config.objective]) if trained is None else trained.sample.model_dump()
    )
    asked = stated | dict(settings)
    try:
        sample = SampleSpec.model_validate(asked)
    except ValidationError as error:
        found = problems_in(error, SampleSpec, asked)
        raise UserInputError("; ".join(f"{show_path(p.path)}: {p.message}" for p in found)) from error
    if trained is not None:
        return trained.model_copy(update={"sample": sample} | ({} if seed is None else {"seed": seed}))
    return Case(
        suite="",
        label=config.label or config.model.name,
        seed=0 if seed is None else seed,
        model=config.model,
        data=DigitsData(),  # nothing is asked of it
        train=TrainSpec(objective=config.objective),
        sample=sample,
        evaluate=EvaluateSpec(),
        profile=ProfileSpec(),
    )


def _decoder(config: ExportedConfig, trained: Case | None, autoencoder: Path | None, device: str) -> Decoder:
    """Return the function from the model's space to uint8; raises DataError for another autoencoder."""
    if config.model.input == "pixel":
        if autoencoder is not None:
            raise UserInputError(f"{config.model.name} makes pixels; leave out autoencoder={autoencoder}")
        return to_images
    codec = None if trained is None else codec_of(trained)
    if autoencoder is not None:
        codec = CodecSpec(kind=kind_of(autoencoder), path=autoencoder)
    if codec is None:
        made = f", on the hub: {config.codec.hub}" if config.codec and config.codec.hub else ""
        raise UserInputError(
            f"{config.model.name} makes latents; name the folder of the autoencoder they are of{made}: "
            "autoencoder='FOLDER'"
        )
    found = fingerprint(codec), digest_of(model_files(folder_of(codec)))
    if config.codec is not None and config.codec.fingerprint not in found:
        raise DataError(
            f"{folder_of(codec)} is not the autoencoder the model was trained with (fingerprint {found[0]}, "
            f"then {config.codec.fingerprint}); name the right one: autoencoder='FOLDER'"
        )
    return load_codec(codec, torch.device(device)).decode


def _numbers(labels: Sequence[int | str], num_classes: int, names: Sequence[str]) -> list[int]:
    """Return classes as numbers; raises UserInputError for one that the model does not know."""
    found = []
    for label in labels:
        number = label
        if isinstance(label, str):
            if label not in names:
                raise UnknownNameError("class", label, names)
            number = list(names).index(label)
        if (
            isinstance(number, bool)
            or not isinstance(number, int | np.integer)
            or not 0 <= number < num_classes
        ):
            raise UserInputError(f"labels are classes 0 to {num_classes - 1}, or their names, got {label!r}")
        found.append(int(number))
    return found
