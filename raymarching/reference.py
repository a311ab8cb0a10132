"""The operators in plain PyTorch: the definition that the kernels are tested against, and the fallback where nothing can be compiled.

Same names, arguments and results as the raw operators (see ops.py). Where the kernels round once (fmaf), so does this, to the bit but for
a one-in-a-billion double rounding.
"""

import math

import torch

from .reference_lens import generate_rays
from .reference_march import contract, march_rays, march_rays_train, morton3D

__all__ = [
    "composite_rays", "composite_rays_train_backward", "composite_rays_train_forward", "contract", "flatten_rays", "generate_rays",
    "march_rays", "march_rays_train", "morton3D", "morton3D_invert", "near_far_from_aabb", "packbits", "sph_from_ray",
]  # fmt: skip

FLOAT_MAX = torch.finfo(torch.float32).max


def near_far_from_aabb(origins, directions, aabb, min_near):
    low, high = (aabb[:3] - origins) / directions, (aabb[3:] - origins) / directions
    parallel, inside = directions == 0, (origins >= aabb[:3]) & (origins <= aabb[3:])
    near = torch.where(parallel, -FLOAT_MAX, torch.fmin(low, high)).amax(1).clamp(min=min_near)
    far = torch.where(parallel, FLOAT_MAX, torch.fmax(low, high)).amin(1).clamp(max=FLOAT_MAX)
    hit = torch.where(parallel, inside, ~(low.isnan() | high.isnan())).all(1) & (near < far) & (far < FLOAT_MAX)
    miss = torch.full_like(near, FLOAT_MAX)
    return torch.where(hit, near, miss), torch.where(hit, far, miss)


def morton3D_invert(indices):
    coords = indices.new_zeros(indices.shape[0], 3)
    for bit in range(10):
        for axis in range(3):
            coords[:, axis] |= ((indices >> (3 * bit + axis)) & 1) << bit
    return coords


def packbits(density, threshold):
    bits = (density > threshold).view(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, device=density.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def flatten_rays(rays, samples):
    first, count = rays.long().unbind(1)
    sound = (first >= 0) & (count > 0) & (first + count <= samples)
    ray = torch.arange(len(rays), device=rays.device).repeat_interleave(torch.where(sound, count, 0))
    row = torch.arange(len(ray), device=rays.device) + (first - torch.where(sound, count, 0).cumsum(0) + count)[ray]
    return torch.full((samples,), -1, dtype=torch.int32, device=rays.device).index_put((row,), ray.int())


def sph_from_ray(origins, directions, radius):
    a, b, c = directions.square().sum(1), (origins * directions).sum(1), origins.square().sum(1) - radius**2
    t = ((b * b - a * c).sqrt() - b) / a
    x, y, z = (origins + t[:, None] * directions).unbind(1)
    return torch.stack([2 / math.pi * torch.atan2((x * x + z * z).sqrt(), y) - 1, torch.atan2(z, x) / math.pi], 1)


def composite_rays_train_forward(density, features, t, dt, rays, T_thresh):
    """Differentiable by autograd, unlike the kernel."""
    first, count = rays.long().unbind(1)
    sound = (first >= 0) & (count > 0) & (first + count <= len(density))
    first, count = torch.where(sound, first, 0), torch.where(sound, count, 0)
    along = torch.arange(int(count.max()) if len(count) else 0, device=rays.device)
    inside = along < count[:, None]
    row = torch.where(inside, first[:, None] + along, 0)
    length = torch.where(inside, dt[row].clamp(min=0), 0)
    tau = torch.where(length > 0, density[row] * length, 0)
    behind = torch.exp(-tau.cumsum(1))
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    stopped = (behind < T_thresh).cumsum(1) - (behind < T_thresh).long() > 0
    counted = inside & ~stopped  # where nothing counts nothing is multiplied: 0 NaN would be NaN
    weight = torch.where(counted, before * -torch.expm1(-tau), 0)
    composited = (weight[..., None] * torch.where(counted[..., None], features[row], 0)).sum(1)
    depth = (weight * torch.where(counted, t[row], 0)).sum(1)
    weights = torch.zeros_like(density).index_put((row[inside],), weight[inside])
    return composited, weight.sum(1), depth, weights


def composite_rays_train_backward(
    grad_composited, grad_opacity, grad_depth, grad_weights, density, features, t, dt, rays, T_thresh
):  # fmt: skip
    with torch.enable_grad():
        leaves = density.detach().requires_grad_(), features.detach().requires_grad_()
        outputs = composite_rays_train_forward(*leaves, t, dt, rays, T_thresh)
    pairs = [(o, g) for o, g in zip(outputs, (grad_composited, grad_opacity, grad_depth, grad_weights)) if g is not None]
    if not pairs:
        return torch.zeros_like(density), torch.zeros_like(features)
    outputs, cotangents = zip(*pairs)
    gradients = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients))


def composite_rays(alive, t_now, t_next, density, features, t, dt, composited, opacity, depth, T_thresh):
    if len(alive) == 0:
        return
    valid = (alive >= 0) & (alive < len(t_now))
    ray, place = alive[valid].long(), valid.nonzero()[:, 0]
    density, features, t, dt = (x.view(len(alive), -1, *x.shape[1:])[place] for x in (density, features, t, dt))
    T = 1 - opacity[ray]
    finished = torch.zeros_like(ray, dtype=torch.bool)
    for k in range(density.shape[1]):
        length = dt[:, k].clamp(min=0)
        tau = torch.where(length > 0, density[:, k] * length, 0)
        weight = torch.where(finished, 0, T * -torch.expm1(-tau))
        composited.index_add_(0, ray, weight[:, None] * torch.where(finished[:, None], 0, features[:, k]))
        opacity.index_add_(0, ray, weight)
        depth.index_add_(0, ray, weight * torch.where(finished, 0, t[:, k]))
        T = T * torch.exp(-tau)
        finished = finished | (T < T_thresh) | ~(dt[:, k] > 0)
    t_now[ray] = t_next[place]
    alive[place[finished]] = -1
