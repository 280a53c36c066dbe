"""Stand-ins for what the paper's suites want from a user: a folder of images and a latent autoencoder."""

from __future__ import annotations

import json

import PIL.Image
import torch

from attnbench.data.photo_patches import load
from attnbench.specs import PhotoPatchesData
from attnbench.torchvision_ops import define_missing_ops


def write_photo_folder(root, classes=3, per_class=8):
    """Write crops of skimage's and sklearn's photographs as `<photograph>/<crop>.png`; returns the folder."""
    photos = load(PhotoPatchesData(image_size=32, crops_per_class=per_class))
    for index in range(classes * per_class):
        folder = root / photos.class_names[index // per_class]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(photos.train.images[index].numpy()).save(folder / f"{index % per_class}.png")
    return root


def write_autoencoder(path, seed=0, stages=4, **settings):
    """Write a random AutoencoderKL with latents as Stable Diffusion's: an eighth of the side, 4 channels.

    `stages` other than 4 divide the side by 2 ** (stages - 1); `settings` are further ones of its config.
    """
    network = random_autoencoder(seed, stages, **settings)
    network.save_pretrained(path)
    return path


def random_autoencoder(seed=0, stages=4, **settings):
    """Return a small AutoencoderKL of random weights."""
    define_missing_ops()  # diffusers imports torchvision
    import diffusers

    torch.manual_seed(seed)
    sizes = {"norm_num_groups": 2, "latent_channels": 4} | settings
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * stages,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        **sizes,
    ).eval()


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_autoencoder_of_diffusers_0_4_2(path, seed=0):
    """Write an AutoencoderKL as diffusers 0.4.2 did, and as `stabilityai/sd-vae-ft-ema` lies on the hub.

    The fields are those of the public config.json of its sister sd-vae-ft-mse, with smaller widths and one
    layer a block: no scaling_factor, which came with 0.10. The attention's weights have their old names, and
    all weights are in one pickle. Returns the network.
    """
    network = random_autoencoder(seed)
    config = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.2",
        "act_fn": "silu",
        "block_out_channels": [4, 4, 4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = network.state_dict()
    for name in list(weights):
        for new, old in OLD_NAMES.items():
            if f".attentions.0.{new}." in name:
                weights[name.replace(new, old)] = weights.pop(name)
    torch.save(weights, path / "diffusion_pytorch_model.bin")
    return network
