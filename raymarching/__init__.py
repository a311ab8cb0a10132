"""Rays, occupancy marching and compositing: CPU and CUDA kernels with a plain PyTorch twin. See README.md beside this file."""

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
    "composite_rays",
    "composite_rays_train",
    "contract",
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
