"""The DiT/LiT skeleton with attention handed in, its parts, and the named recipes."""

from attnbench.models.macs import closed_form_macs
from attnbench.models.skeleton import DiffusionTransformer, build_model, fuse_for_inference

__all__ = ["DiffusionTransformer", "build_model", "closed_form_macs", "fuse_for_inference"]
