"""Shapes of the operators' results without running them: for torch.compile, export and torch.library.opcheck."""

import torch


def register_fakes():
    """Registers the fake form of each operator; the library must be loaded."""
    for fake in (generate_rays, near_far_from_aabb, morton3D, morton3D_invert, packbits, contract, flatten_rays, sph_from_ray,
                 march_rays_train, march_rays, composite_rays_train_forward, composite_rays_train_backward, composite_rays):  # fmt: skip
        torch.library.register_fake(f"raymarching::{fake.__name__}", fake)


def generate_rays(image, pixels, poses, intrinsics, distortion, lens):
    return pixels.new_empty(image.shape[0], 3), pixels.new_empty(image.shape[0], 3)


def near_far_from_aabb(origins, directions, aabb, min_near):
    return origins.new_empty(origins.shape[0]), origins.new_empty(origins.shape[0])


def morton3D(coords):
    return coords.new_empty(coords.shape[0])


def morton3D_invert(indices):
    return indices.new_empty(indices.shape[0], 3)


def packbits(density, threshold):
    return density.new_empty(density.shape[0] // 8, dtype=torch.uint8)


def contract(positions):
    return torch.empty_like(positions, memory_format=torch.contiguous_format)


def flatten_rays(rays, samples):
    return rays.new_empty(samples)


def sph_from_ray(origins, directions, radius):
    return origins.new_empty(origins.shape[0], 2)


def march_rays_train(origins, directions, near, far, noise, num_rays, bitfield, *, capacity, **settings):
    def rows(*shape, dtype=torch.float32):
        return origins.new_empty(shape, dtype=dtype)

    return (rows(capacity, 3), rows(capacity, 3), rows(capacity), rows(capacity), rows(capacity, dtype=torch.int32),
            rows(origins.shape[0], 2, dtype=torch.int32), rows(3, dtype=torch.int32))  # fmt: skip


def march_rays(alive, t_now, origins, directions, far, bitfield, *, steps, **settings):
    rows = alive.shape[0] * steps
    return (origins.new_empty(rows, 3), origins.new_empty(rows, 3), origins.new_empty(rows), origins.new_empty(rows),
            origins.new_empty(alive.shape[0]))  # fmt: skip


def composite_rays_train_forward(density, features, t, dt, rays, T_thresh):
    count = rays.shape[0]
    return density.new_empty(count, features.shape[1]), density.new_empty(count), density.new_empty(count), torch.empty_like(density)


def composite_rays_train_backward(
    grad_composited, grad_opacity, grad_depth, grad_weights, density, features, t, dt, rays, T_thresh
):  # fmt: skip
    return torch.empty_like(density), torch.empty_like(features)


def composite_rays(alive, t_now, t_next, density, features, t, dt, composited, opacity, depth, T_thresh):
    return None
