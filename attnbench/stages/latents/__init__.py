"""The user's autoencoder, images as its latents, and what the model sees of either."""
