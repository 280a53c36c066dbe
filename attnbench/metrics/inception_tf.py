"""Extractor `inception-tf`: the network behind FID, from a weights file that pip does not install."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import torch
from torch import nn

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import UnsupportedError
from attnbench.hookspecs import hookimpl
from attnbench.metrics.clean_resize import clean_resize
from attnbench.metrics.spatial import first_channels
from attnbench.metrics.weights_files import WeightsFile, find
from attnbench.storage.hashing import file_sha256
from attnbench.torchvision_ops import define_missing_ops

SIDE = 299
SPATIAL_BLOCK = "Mixed_6d"
"""`mixed_6` of the TensorFlow graph, whose first branch (`mixed_6/conv`, after batch norm and ReLU) stands
first in the block's output. Mixed_6b to Mixed_6e are mixed_4 to mixed_7."""
WEIGHTS = WeightsFile(
    extractor="inception-tf",
    names=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    variable="ATTNBENCH_INCEPTION_WEIGHTS",
    source="get it with `attnbench weights fetch inception-tf`",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    size_bytes=95_628_359,
)


def _load(inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UnsupportedError(
            "extractor inception-tf needs torch-fidelity, which is not installed; "
            "run `pip install attnbench[inception]`"
        )
    weights = find(WEIGHTS, inputs.weights)  # by its hash: torch-fidelity would run any pickle
    define_missing_ops()  # torch-fidelity imports torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    ).to(inputs.device)
    up_to_maps, up_to_pool = _halves(network)

    @torch.no_grad()
    def extract(images: torch.Tensor) -> Features:
        maps = up_to_maps(scaled_input(images.to(inputs.device), inputs.protocol))  # [B, 768, 17, 17]
        pooled = up_to_pool(maps).flatten(1)  # [B, 2048]
        logits = pooled @ network.fc.weight.T  # without bias, as the evaluator of guided-diffusion has them
        return Features(pooled=pooled, logits=logits, spatial=first_channels(maps, pooled.shape[1]))

    return extract


def scaled_input(images: torch.Tensor, protocol: str) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as the float32 [B, 3, 299, 299] in -1 ... 127/128 that the first layer takes.

    Protocol `adm`: bilinear as TensorFlow 1 has it, without antialias and with pixel corners at whole
    numbers, as in the graph itself; `clean`: clean-fid's resize. Grey is repeated three times.
    """
    if protocol == "clean":
        x = clean_resize(images, SIDE).to(images.device)
    else:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        x = images.permute(0, 3, 1, 2).float()
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(SIDE, SIDE), align_corners=False)
    return (x.expand(-1, 3, -1, -1) - 128) / 128


def _halves(network: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers up to the spatial maps, and those from there to the pool.

    The network is a chain of its children; its own forward would resize and round first.
    """
    names = [name for name, _ in network.named_children()]
    layers = list(network.children())
    cut, end = names.index(SPATIAL_BLOCK) + 1, names.index("AvgPool") + 1
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:end])


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `inception-tf`."""
    yield FeatureExtractor(
        name="inception-tf",
        suffix="",
        summary="TensorFlow's 2015-12-05 Inception, port of torch-fidelity; needs a weights file",
        source=f"torch-fidelity inception-v3-compat, {WEIGHTS.names[0]}",
        load=_load,
        identity=lambda inputs: file_sha256(find(WEIGHTS, inputs.weights)),
        protocols=("adm", "clean"),
        notes={
            "input": "RGB 0 ... 255, TF1 bilinear resize to 299 px without antialias; protocol clean: "
            "clean-fid's bicubic resize",
            "spatial features": "first 7 channels of mixed_6/conv, 17 x 17 x 7 = 2023",
            "weights": f"`evaluate.weights`, ${WEIGHTS.variable}, or where `attnbench weights list` looks",
            "compares with": "published FID, sFID, IS, Precision, Recall, where reference and N are the same",
        },
    )
