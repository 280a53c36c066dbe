"""Stand-ins for what the paper's suites want from a user: a folder of images and a latent autoencoder."""

from __future__ import annotations

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


def write_autoencoder(path, seed=0):
    """Write a random AutoencoderKL with latents as Stable Diffusion's: an eighth of the side, 4 channels."""
    define_missing_ops()  # diffusers imports torchvision
    import diffusers

    torch.manual_seed(seed)
    diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(path)
    return path
