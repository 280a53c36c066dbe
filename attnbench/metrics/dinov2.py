"""Extractor `dinov2`: a self-supervised ViT-L/14, from a weights file that pip does not install."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import DataError
from attnbench.hookspecs import hookimpl
from attnbench.metrics.clean_resize import clean_resize
from attnbench.metrics.spatial import first_channels
from attnbench.metrics.weights_files import WeightsFile, find, read_tensors
from attnbench.storage.hashing import file_sha256
from attnbench.torchvision_ops import define_missing_ops

SIDE, PATCH = 224, 14
GRID = SIDE // PATCH  # 16
ARCHITECTURE = "vit_large_patch14_dinov2.lvd142m"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
WEIGHTS = WeightsFile(
    extractor="dinov2",
    names=(f"{ARCHITECTURE}.safetensors", "dinov2_vitl14_pretrain.pth"),
    variable="ATTNBENCH_DINOV2_WEIGHTS",
    source=f"get it with `hf download timm/{ARCHITECTURE} model.safetensors`, or from "
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth (1.2 GB)",
    hub_repo=f"timm/{ARCHITECTURE}",
)


def _load(inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
    network = _network(inputs).to(inputs.device)

    @torch.no_grad()
    def extract(images: torch.Tensor) -> Features:
        x = scaled_input(images, inputs.protocol).to(inputs.device)
        tokens = network.forward_features(x)  # [B, 1 + 16 x 16, F], after the final norm
        pooled = tokens[:, 0]
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))  # [B, F, 16, 16]
        return Features(pooled=pooled, spatial=first_channels(maps, pooled.shape[1]))

    return extract


def _network(inputs: ExtractorInputs) -> Any:
    """Build the network at its native 518 px, load its weights, and set it up for 224 px."""
    path = find(WEIGHTS, inputs.weights)
    state = read_tensors(path)
    state.pop("mask_token", None)  # of the training; only the file of the authors has it
    define_missing_ops()  # timm imports torchvision
    import timm

    with torch.device("meta"):  # 300 million random numbers would be thrown away
        network: Any = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise DataError(f"{path} does not hold {ARCHITECTURE}: {reason}; {WEIGHTS.source}") from error
    network.patch_embed.set_input_size(img_size=(SIDE, SIDE))
    network.pos_embed = nn.Parameter(position_embedding(network.pos_embed.detach(), GRID))
    return network.float().eval().requires_grad_(False)


def position_embedding(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Return a position embedding [1, 1 + n n, F] for a grid of `side` x `side` patches.

    As the authors' code does it: bicubic without antialias, with 0.1 added to the side, which shifts the
    sampling points. timm's own way (antialias, no shift) gives other features.
    Source: facebookresearch/dinov2, `interpolate_pos_encoding`.
    """
    old = round((embedding.shape[1] - 1) ** 0.5)
    if old == side:
        return embedding
    maps = embedding[:, 1:].transpose(1, 2).unflatten(2, (old, old))
    maps = F.interpolate(maps, scale_factor=((side + 0.1) / old,) * 2, mode="bicubic")
    return torch.cat([embedding[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)


def scaled_input(images: torch.Tensor, protocol: str) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as float32 [B, 3, 224, 224], normalised by ImageNet's mean and deviation.

    Pillow's bicubic resize with antialias, rounded to whole numbers (`adm`, the network's own) or not
    (`clean`). Grey is repeated three times.
    Source: layer6ai-labs/dgm-eval, models/dinov2.py, without and with --clean_resize.
    """
    if protocol == "clean":
        x = clean_resize(images, SIDE)
    else:
        x = torch.stack([_resized(image) for image in images.cpu().numpy()]).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x.expand(-1, 3, -1, -1) / 255 - mean) / std


def _resized(image: np.ndarray) -> torch.Tensor:
    """Resize one uint8 [H, W, C] to uint8 [224, 224, C]."""
    picture = PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = picture.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized).reshape(SIDE, SIDE, image.shape[2]))


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `dinov2`."""
    yield FeatureExtractor(
        name="dinov2",
        suffix="dinov2",
        summary="DINOv2 ViT-L/14 at 224 px, class token; 1024 features, no logits; needs a weights file",
        source=f"timm {ARCHITECTURE}, arXiv:2304.07193; metric of arXiv:2306.04675",
        load=_load,
        identity=lambda inputs: file_sha256(find(WEIGHTS, inputs.weights)),
        protocols=("adm", "clean"),
        logits=False,
        notes={
            "input": "RGB at 224 px, Pillow's bicubic with antialias (protocol clean: not rounded), "
            "ImageNet's mean and deviation",
            "spatial features": "first 4 channels of the 16 x 16 patch tokens after the final norm, 1024",
            "inception score": "not offered: the network has no classes",
            "weights": f"`evaluate.weights`, ${WEIGHTS.variable}, or where `attnbench weights list` looks",
            "compares with": "FD of dgm-eval's dinov2 (FD-dinov2 alone), where reference and N are the same; "
            "its input and position embedding are followed, its numbers were not reproduced here",
        },
    )
