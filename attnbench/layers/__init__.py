"""Public parts an attention backend may reuse; nothing here knows a backend."""

from attnbench.layers.agent_bias import PositionBias
from attnbench.layers.agent_tokens import agent_softmax, pool_tokens
from attnbench.layers.depthwise import DepthwiseConv, ReparameterisedConv, fuse_reparameterised, on_grid
from attnbench.layers.feature_maps import elu_plus_one
from attnbench.layers.gated_delta import gated_delta_macs, gated_delta_rule
from attnbench.layers.gated_linear import gated_linear_attention, gated_linear_macs
from attnbench.layers.grid_rotary import grid_rotation, rotate_pairs
from attnbench.layers.grouped_tiles import grouped_attention, grouped_macs
from attnbench.layers.linear_core import (
    Association,
    contraction,
    contraction_macs,
    key_mass,
    linear_attention,
    matmul_order,
)
from attnbench.layers.log_linear import log_linear_attention, log_linear_macs, num_levels
from attnbench.layers.neighbour_shift import neighbour_shift
from attnbench.layers.neighbourhood import (
    computed_blocks,
    disc_neighbours,
    disc_size,
    disc_tiles,
    in_disc,
    near,
    neighbours,
)
from attnbench.layers.power_focus import power_focus
from attnbench.layers.precision import compute_dtype, without_autocast
from attnbench.layers.predicted_conv import predicted_convolution
from attnbench.layers.projection import QKVProjection, ZeroLinear, merge_heads, split_heads
from attnbench.layers.recurrent_parts import (
    ChunkSize,
    GatedNorm,
    LearnedDecay,
    mean_of_scans,
    softplus,
    unit_length,
    unit_steps,
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
from attnbench.layers.tiles import (
    Tiling,
    affinities,
    choose,
    largest_tiles,
    ranked_tiles,
    tile_grid,
    why_not_that_many,
)
from attnbench.layers.token_blocks import block_sides, from_blocks, nearness, to_blocks

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
    "Tiling",
    "ZeroLinear",
    "affinities",
    "agent_softmax",
    "block_sides",
    "choose",
    "compute_dtype",
    "computed_blocks",
    "contraction",
    "contraction_macs",
    "disc_neighbours",
    "disc_size",
    "disc_tiles",
    "elu_plus_one",
    "from_blocks",
    "fuse_reparameterised",
    "gated_delta_macs",
    "gated_delta_rule",
    "gated_linear_attention",
    "gated_linear_macs",
    "grid_rotation",
    "grouped_attention",
    "grouped_macs",
    "in_disc",
    "key_mass",
    "largest",
    "largest_tiles",
    "linear_attention",
    "log_linear_attention",
    "log_linear_macs",
    "matmul_order",
    "mean_of_scans",
    "merge_heads",
    "near",
    "nearness",
    "neighbour_shift",
    "neighbours",
    "num_levels",
    "on_grid",
    "pool_tokens",
    "power_focus",
    "predicted_convolution",
    "probability",
    "ranked_tiles",
    "rotate_pairs",
    "routed_difference",
    "routed_focus",
    "routed_projection",
    "router_logits",
    "select",
    "softplus",
    "split_heads",
    "tile_grid",
    "to_blocks",
    "unit_gate",
    "unit_length",
    "unit_steps",
    "why_not_that_many",
    "without_autocast",
]
