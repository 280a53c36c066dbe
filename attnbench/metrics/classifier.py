"""A small convolutional classifier, trained in seconds: class accuracy, and extractor `digits-cnn`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import UserInputError
from attnbench.hookspecs import hookimpl
from attnbench.metrics.spatial import first_channels
from attnbench.specs import content_hash
from attnbench.storage.arrays import DamagedFileError, read_arrays, write_arrays
from attnbench.storage.atomic import storage_errors

FEATURE_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the classifier is built and trained; part of its cache key."""

    width: int = 16
    max_side: int = 16  # larger images are averaged down to this
    steps: int = 500
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    max_shift: int = 1  # pixels, both ways
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images uint8 [N, H, W, C] and labels int64 [N] of `num_classes` classes to train on."""

    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if not len(self.images) or len(self.images) != len(self.labels):
            raise UserInputError(
                f"a classifier needs as many labels as images, got {len(self.images)} images and "
                f"{len(self.labels)} labels; give it the dataset's training part"
            )


class SmallCnn(nn.Module):
    """Convolutions with batch norm, halved by max pooling down to 4 pixels, then averaged."""

    def __init__(self, *, channels: int, side: int, num_classes: int, width: int) -> None:
        super().__init__()
        layers = _conv(channels, width)
        while side > 4:
            wider = min(2 * width, FEATURE_WIDTH)
            layers += [*_conv(width, wider), nn.MaxPool2d(2)]
            width, side = wider, side // 2
        layers += [*_conv(width, FEATURE_WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURE_WIDTH, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, C, H, W] to logits [B, K]."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


def _conv(channels_in: int, channels_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of uint8 images."""

    network: SmallCnn
    max_side: int

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> Features:
        """Return pooled [B, 128] and spatial features and logits [B, K] of uint8 [B, H, W, C] images."""
        network = self.network
        x = _inputs(images, self.max_side).to(network.head.weight.device)
        maps = network.features[:-2](x)  # [B, 128, h, w], before they are averaged and flattened
        pooled = network.features[-2:](maps)
        return Features(
            pooled=pooled, logits=network.head(pooled), spatial=first_channels(maps, FEATURE_WIDTH)
        )

    def correct(self, images: torch.Tensor, labels: torch.Tensor) -> int:
        """Return how many of uint8 [B, H, W, C] images are given their label."""
        logits = self.features(images).logits
        assert logits is not None  # this network always has them
        return int((logits.argmax(dim=1).cpu() == labels.cpu()).sum())

    def accuracy(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 512) -> float:
        """Return the part of uint8 [N, H, W, C] images that is given its label, in [0, 1]."""
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        return sum(self.correct(*batch) for batch in batches) / len(labels)


def load_or_train_classifier(
    data: LabelledImages,
    cache_dir: Path,
    *,
    seed: int,
    device: torch.device,
    recipe: Recipe = Recipe(),
    warn: Callable[[str], None] = lambda text: None,
) -> Classifier:
    """Return the classifier of these images, trained at most once per cache folder.

    The weights' file name is a hash of images, labels, seed and recipe; `warn` hears of a damaged one, which
    is trained again. Raises StorageError when the file cannot be read or written.
    """
    side = min(data.images.shape[1], recipe.max_side)
    path = cache_dir / f"classifier-{_key(data, seed, recipe)}.safetensors"
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        network = SmallCnn(
            channels=data.images.shape[3], side=side, num_classes=data.num_classes, width=recipe.width
        )
    network.to(device)
    if not _load(network, path, warn):
        _train(network, data, recipe, seed)
        _save(network, path)
    return Classifier(network.eval().requires_grad_(False), recipe.max_side)


def _key(data: LabelledImages, seed: int, recipe: Recipe) -> str:
    digest = hashlib.sha256()
    for tensor in (data.images, data.labels):
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().data)
    return content_hash([digest.hexdigest(), data.num_classes, seed, asdict(recipe)])


def _load(network: SmallCnn, path: Path, warn: Callable[[str], None]) -> bool:
    """Load cached weights; False where there are none, or none that can be used."""
    try:
        weights = read_arrays(path, unchecked=True)
    except DamagedFileError as error:
        warn(f"{path} is damaged ({error}): the network is trained again")
        return False
    if weights is None:
        return False
    try:
        network.load_state_dict(weights)
    except RuntimeError:  # of another version
        return False
    return True


def _save(network: SmallCnn, path: Path) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {name: weight.cpu() for name, weight in network.state_dict().items()})


def _train(network: SmallCnn, data: LabelledImages, recipe: Recipe, seed: int) -> None:
    """Train in place with AdamW and a one-cycle learning rate; batches are drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    device = network.head.weight.device
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    network.train()
    for _ in range(recipe.steps):
        chosen = torch.randint(len(data.labels), (recipe.batch_size,), generator=generator)
        x = _augmented(_inputs(data.images[chosen], recipe.max_side), recipe, generator)
        loss = F.cross_entropy(
            network(x.to(device)), data.labels[chosen].to(device), label_smoothing=recipe.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _inputs(images: torch.Tensor, max_side: int) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as float32 [B, C, h, w] in [-1, 1], averaged down to `max_side`."""
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.adaptive_avg_pool2d(x, max_side) if x.shape[-1] > max_side else x


def _augmented(x: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Shift a batch by a few pixels (edges repeat) and, where allowed, mirror half the batches."""
    reach = recipe.max_shift
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]
    return x.flip(-1) if recipe.flip and torch.rand((), generator=generator) < 0.5 else x


def _training_data(inputs: ExtractorInputs) -> LabelledImages:
    if inputs.train_images is None or inputs.train_labels is None:
        raise UserInputError(
            "extractor digits-cnn trains on the dataset, got no training images; it scores the cases of a "
            "suite only: choose another with --extractor"
        )
    return LabelledImages(
        images=inputs.train_images, labels=inputs.train_labels, num_classes=inputs.num_classes
    )


def _load_extractor(inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
    data = _training_data(inputs)
    network = load_or_train_classifier(
        data, inputs.cache_dir, seed=inputs.seed, device=inputs.device, warn=inputs.warn
    )
    return network.features


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `digits-cnn`."""
    yield FeatureExtractor(
        name="digits-cnn",
        suffix="digits-cnn",
        summary="Small CNN trained in seconds on the dataset's own training part; 128 features",
        source="attnbench.metrics.classifier",
        load=_load_extractor,
        identity=lambda inputs: _key(_training_data(inputs), inputs.seed, Recipe()),
        takes_weights=False,
        notes={"compares with": "nothing published: other data or another seed give another network"},
    )
