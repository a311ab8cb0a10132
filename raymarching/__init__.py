"""Rays, occupancy marching and compositing: CPU and CUDA kernels with a plain PyTorch twin. See README.md beside this file."""

from .draw import adapt_ray_count, draw_rays
from .loss import composite_loss
from .ops import (
    composite_rays,
    composite_rays_train,
    contract,
    flatten_rays,
    generate_rays,
    march_rays,
    march_rays_train,
    morton3D,
    morton3D_invert,
    near_far_from_aabb,
    packbits,
    sph_from_ray,
)

__all__ = [
    "adapt_ray_count",
    "composite_loss",
    "composite_rays",
    "composite_rays_train",
    "contract",
    "draw_rays",
    "flatten_rays",
    "generate_rays",
    "march_rays",
    "march_rays_train",
    "morton3D",
    "morton3D_invert",
    "near_far_from_aabb",
    "packbits",
    "sph_from_ray",
]
