"""Public parts an attention backend may reuse; nothing here knows a backend."""

from attnbench.layers.agent_bias import PositionBias
from attnbench.layers.agent_tokens import agent_softmax, pool_tokens
from attnbench.layers.depthwise import DepthwiseConv, ReparameterisedConv, fuse_reparameterised, on_grid
from attnbench.layers.feature_maps import elu_plus_one
from attnbench.layers.gated_delta import gated_delta_macs, gated_delta_rule
from attnbench.layers.gated_linear import gated_linear_attention, gated_linear_macs
from attnbench.layers.grid_rotary import grid_rotation, rotate_pairs
from attnbench.layers.linear_core import (
    Association,
    contraction,
    contraction_macs,
    key_mass,
    linear_attention,
    matmul_order,
)
from attnbench.layers.log_linear import log_linear_attention, log_linear_macs, num_levels
from attnbench.layers.neighbourhood import computed_blocks, near, neighbours
from attnbench.layers.power_focus import power_focus
from attnbench.layers.precision import compute_dtype, without_autocast
from attnbench.layers.projection import QKVProjection, merge_heads, split_heads
from attnbench.layers.recurrent_parts import (
    ChunkSize,
    GatedNorm,
    LearnedDecay,
    mean_of_scans,
    softplus,
    unit_length,
)
from attnbench.layers.routed import routed_projection
from attnbench.layers.routing import (
    RouterTraining,
    largest,
    probability,
    routed_difference,
    routed_focus,
    router_logits,
    select,
    unit_gate,
)

__all__ = [
    "Association",
    "ChunkSize",
    "DepthwiseConv",
    "GatedNorm",
    "LearnedDecay",
    "PositionBias",
    "QKVProjection",
    "ReparameterisedConv",
    "RouterTraining",
    "agent_softmax",
    "compute_dtype",
    "computed_blocks",
    "contraction",
    "contraction_macs",
    "elu_plus_one",
    "fuse_reparameterised",
    "gated_delta_macs",
    "gated_delta_rule",
    "gated_linear_attention",
    "gated_linear_macs",
    "grid_rotation",
    "key_mass",
    "largest",
    "linear_attention",
    "log_linear_attention",
    "log_linear_macs",
    "matmul_order",
    "mean_of_scans",
    "merge_heads",
    "near",
    "neighbours",
    "num_levels",
    "on_grid",
    "pool_tokens",
    "power_focus",
    "probability",
    "rotate_pairs",
    "routed_difference",
    "routed_focus",
    "routed_projection",
    "router_logits",
    "select",
    "softplus",
    "split_heads",
    "unit_gate",
    "unit_length",
    "without_autocast",
]
