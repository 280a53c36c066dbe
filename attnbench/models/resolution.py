"""Between pixels of the decoded image and the side of a model's input."""

from __future__ import annotations

from attnbench.errors import UserInputError
from attnbench.specs import ModelConfig

LATENT_FACTOR = 8  # Stable Diffusion's autoencoders


def input_size(config: ModelConfig, resolution: int) -> int:
    """Return the side of the model's input for a decoded image of `resolution` pixels.

    Raises UserInputError when the latent factor and the patch size do not divide it.
    """
    factor = LATENT_FACTOR if config.input == "latent" else 1
    step = factor * config.patch_size
    if resolution < 1 or resolution % step:
        below = resolution // step * step
        raise UserInputError(
            f"resolution {resolution} does not fit model {config.name}: patch size {config.patch_size} on "
            f"{config.input} input needs a multiple of {step} px; "
            f"the nearest are {max(below, step)} and {below + step}"
        )
    return resolution // factor
