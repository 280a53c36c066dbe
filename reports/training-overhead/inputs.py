"""A real training set to measure with: crops of photographs, prepared, and a small autoencoder."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from attnbench.data.photo_patches import PHOTOS
from attnbench.stages import prepare
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite
from attnbench.torchvision_ops import define_missing_ops

ATTNBENCH = str(Path(sys.executable).with_name("attnbench"))
SIDE, CLASSES, TRAINED, HELD_OUT = 256, 8, 64, 4  # of each class: 512 images to train on, one whole shard
SUITE = """\
name: overhead
question: What does a training take beside its steps?
seed: 0
model: dit-s
data:
  name: prepared
  path: {set}
  image_size: 256
  codec: {{kind: autoencoder-kl, path: {vae}}}
train: {{batch_size: {batch}}}
sample: {{per_class: 10}}
evaluate: {{metrics: [fd]}}
"""


def make_inputs(folder: Path) -> None:
    """Fill a folder: `photos/<class>/*.jpg`, `set` (`attnbench data prepare`), `vae`, latents in `store`."""
    chooser = random.Random(0)
    for photo in PHOTOS:
        package = find_spec(photo.package)
        assert package is not None
        assert package.origin is not None
        with Image.open(Path(package.origin).parent / photo.file) as opened:
            image = opened.convert("RGB")
        if min(image.size) < 1.5 * SIDE:  # the cat: its crops would be nearly the same
            continue
        (folder / "photos" / photo.name).mkdir(parents=True)
        for number in range(TRAINED + HELD_OUT):
            x, y = (chooser.randrange(length - SIDE + 1) for length in image.size)
            crop = image.crop((x, y, x + SIDE, y + SIDE))
            crop.save(folder / "photos" / photo.name / f"{number}.jpg", quality=95)
    words = [ATTNBENCH, "data", "prepare", str(folder / "photos"), "--to", str(folder / "set")]
    words += ["--image-size", str(SIDE), "--held-out", str(HELD_OUT), "-q"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    save_autoencoder(folder / "vae")
    case = load_suite(str(suite_file(folder, batch=256)), []).cases[0]
    prepare.run(case, Workspace(root=folder / "store", device=torch.device("cpu")))


def save_autoencoder(folder: Path) -> None:
    """Save a random AutoencoderKL of Stable Diffusion's shape (4 channels, factor 8), but 4 wide and quick.

    What latents hold changes no speed, their size does.
    """
    define_missing_ops()
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        latent_channels=4,
        layers_per_block=1,
        mid_block_add_attention=False,
    ).save_pretrained(folder)


def suite_file(folder: Path, *, batch: int) -> Path:
    """Write the suite of one case, dit-s on the latents, with this batch size; returns its path."""
    path = folder / f"overhead-{batch}.yaml"
    path.write_text(SUITE.format(set=folder / "set", vae=folder / "vae", batch=batch))
    load_suite(str(path), [])  # says what is wrong with it, if anything
    return path
