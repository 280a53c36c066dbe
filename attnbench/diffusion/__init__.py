"""Diffusion processes, samplers as generators, guidance, and noise that is a function of position.

A *denoiser* is a callable `(x [B, C, H, W], time [B]) -> [B, C or 2C, H, W]`: a model with its labels
bound. Everything here works on denoisers, so it knows neither labels nor transformers.
"""
