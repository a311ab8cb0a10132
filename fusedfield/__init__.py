"""Small radiance fields in one kernel: grid features, networks and their gradients on tensor cores. See README.md beside this file."""

from .ops import (
    available,
    merf,
    merf_at,
    merf_backward,
    merf_density_at,
    ngp,
    ngp_at,
    ngp_backward,
    ngp_density_at,
    ngp_render,
    proposal,
    proposal_at,
    proposal_backward,
    split_like,
)

__all__ = [
    "available",
    "merf",
    "merf_at",
    "merf_backward",
    "merf_density_at",
    "ngp",
    "ngp_at",
    "ngp_backward",
    "ngp_density_at",
    "ngp_render",
    "proposal",
    "proposal_at",
    "proposal_backward",
    "split_like",
]
