"""Public parts an attention backend may reuse; nothing here knows a backend."""

from attnbench.layers.depthwise import DepthwiseConv, ReparameterisedConv, fuse_reparameterised
from attnbench.layers.feature_maps import power_focus
from attnbench.layers.linear_core import (
    Association,
    contraction,
    contraction_macs,
    key_mass,
    linear_attention,
    matmul_order,
)
from attnbench.layers.precision import compute_dtype, without_autocast
from attnbench.layers.projection import QKVProjection, merge_heads, split_heads
from attnbench.layers.routed import routed_projection

__all__ = [
    "Association",
    "DepthwiseConv",
    "QKVProjection",
    "ReparameterisedConv",
    "compute_dtype",
    "contraction",
    "contraction_macs",
    "fuse_reparameterised",
    "key_mass",
    "linear_attention",
    "matmul_order",
    "merge_heads",
    "power_focus",
    "routed_projection",
    "split_heads",
    "without_autocast",
]
