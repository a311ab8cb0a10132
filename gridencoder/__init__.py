"""Multi-resolution grid encoding, hashed or tiled (Mueller et al. 2022), with a CPU and a CUDA form."""

from .encoder import GridEncoder, level_layout
from .ops import (
    add_grid_encode_gradient,
    add_total_variation_gradient,
    add_weight_decay_gradient,
    grid_encode,
    grid_encode_backward,
    grid_encode_backward_positions,
    grid_encode_forward,
)

__all__ = [
    "GridEncoder",
    "add_grid_encode_gradient",
    "add_total_variation_gradient",
    "add_weight_decay_gradient",
    "grid_encode",
    "grid_encode_backward",
    "grid_encode_backward_positions",
    "grid_encode_forward",
    "level_layout",
]
