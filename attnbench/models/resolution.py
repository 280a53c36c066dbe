"""Between pixels of the decoded image and the side of a model's input."""

from __future__ import annotations

from attnbench.errors import UserInputError
from attnbench.specs import ModelConfig

LATENT_FACTOR = 8  # that of Stable Diffusion's autoencoders, where none is named or at hand


def input_size(config: ModelConfig, resolution: int, latent_factor: int = LATENT_FACTOR) -> int:
    """Return the side of the model's input for a decoded image of `resolution` pixels.

    `latent_factor` is the side of an image over that of its latents, as the autoencoder makes them; it does
    not matter to a model on pixels. Raises UserInputError when factor and patch size do not divide the side.
    """
    factor = latent_factor if config.input == "latent" else 1
    step = factor * config.patch_size
    if resolution < 1 or resolution % step:
        below = resolution // step * step
        where = f", {factor} times smaller than the image," if config.input == "latent" else ""
        raise UserInputError(
            f"resolution {resolution} does not fit model {config.name}: patch size {config.patch_size} on "
            f"{config.input} input{where} needs a multiple of {step} px; "
            + (f"the nearest are {below} and {below + step}" if below > 0 else f"the smallest is {step}")
        )
    return resolution // factor
