"""Drawing training rays: one operator from random numbers to rays and what the photos show there, one that follows the samples they take.

Notation and errors as in ops.py. Both read their counts on the device and nothing is read by the host.
"""

import torch

from . import ops, reference, reference_draw
from .checks import check_at_least, check_tensors

kernels = reference_draw if ops.kernels is reference else ops.kernels


def draw_rays(random, count, pixels, offsets, sizes, images, mixed, poses, intrinsics, distortion, lens, near, far, aabb):
    """Training rays: a random pixel of a random photo each, the world ray through it, and what the photo shows there.

    A number u in [0, 1) chooses cell min(floor(u m), m - 1) of m; the ray goes through the middle of its pixel.

    Args:
        random: [N, K >= 3] in [0, 1): columns 0, 1, 2 choose the photo, x and y. What is outside chooses the nearest, NaN the first.
        count: [1] int32, how many rows are in use, from the first on.
        pixels: [P, C] uint8, C 3 or 4 (alpha): the training photos, each row by row.
        offsets: [n] int64, the first row of each photo in `pixels`; n at least 1.
        sizes: [n, 2] int64, width and height of each photo in pixels.
        images: [n] int64, which of the V views each photo is.
        mixed: each row chooses its own photo; else all take the one that row 0 chooses.
        poses [V, 3, 4], intrinsics [V, 4], distortion [V, 6], lens [V] int32: the views' cameras, as in `generate_rays`.
        near, far: [V], the limits of each view, in world units along the ray.
        aabb: [6], the lower then the upper corner of the box outside which nothing is sampled.
    Returns:
        origins [N, 3] and unit directions [N, 3] as of `generate_rays`; near [N] and far [N] as of `near_far_from_aabb` with min_near 0,
        narrowed to the view's limits; image [N] int64, the view; target [N, C] in [0, 1], the pixel over 255. Rows that are not in use
        have near = far = float32 max and 0 elsewhere. A photo whose view does not exist gives NaN rays with near = far = float32 max, a
        pixel that lies outside `pixels` a NaN target. Not differentiable.
    Raises:
        TypeError, ValueError: as in ops.py; also for fewer than three columns, no photo, or C other than 3 and 4.
    """
    check_tensors(
        random=(random, torch.float32, (None, None)),
        count=(count, torch.int32, (1,)),
        pixels=(pixels, torch.uint8, (None, None)),
        images=(images, torch.int64, (None,)),
        poses=(poses, torch.float32, (None, 3, 4)),
        aabb=(aabb, torch.float32, (6,)),
    )
    photos, views = len(images), len(poses)
    check_tensors(
        images=(images, torch.int64, (photos,)),
        offsets=(offsets, torch.int64, (photos,)),
        sizes=(sizes, torch.int64, (photos, 2)),
        intrinsics=(intrinsics, torch.float32, (views, 4)),
        distortion=(distortion, torch.float32, (views, 6)),
        lens=(lens, torch.int32, (views,)),
        near=(near, torch.float32, (views,)),
        far=(far, torch.float32, (views,)),
    )
    if random.shape[1] < 3:
        raise ValueError(f"random must have at least 3 columns (photo, x, y), got {random.shape[1]}")
    if pixels.shape[1] not in (3, 4):
        raise ValueError(f"pixels must have 3 or 4 channels, got {pixels.shape[1]}")
    if photos == 0:
        raise ValueError("images must name at least one photo to draw from")
    return kernels.draw_rays(random, count, pixels, offsets, sizes, images, mixed, poses, intrinsics, distortion, lens, near, far, aabb)


def adapt_ray_count(value, counts, capacity, samples, fill, growth):
    """Sets how many rays the next step draws, such that their samples just fill the buffers. In place, on the device.

    value <- round(value clamp(fill samples / max(counts[2], 1), 1 / growth^4, growth)), in [1, capacity], in double precision; halves go
    to the even number. Fewer rays are reached faster than more, since what does not fit is lost.

    Args:
        value: [1] int32, changed: the number of rays.
        counts: [3] int32 of `march_rays_train`; the last, the samples that the rays wanted, is used.
        capacity: the most rays; from 1 to 2^31 - 1.
        samples: M, rows of the sample buffers.
        fill: the part of them that is aimed at.
        growth: most by which the number grows in a step; at least 1. It falls by at most growth^4.
    Raises:
        TypeError, ValueError: as in ops.py.
    """
    check_tensors(value=(value, torch.int32, (1,)), counts=(counts, torch.int32, (3,)))
    check_at_least(0, samples=samples, fill=fill)
    check_at_least(1, capacity=capacity, growth=growth)
    if capacity >= 2**31:
        raise ValueError(f"capacity must be at most 2^31 - 1 rays, got {capacity}")
    kernels.adapt_ray_count(value, counts, capacity, samples, fill, growth)


def _fake_draw_rays(random, count, pixels, offsets, sizes, images, *cameras):
    rays = random.shape[0]
    return (random.new_empty(rays, 3), random.new_empty(rays, 3), random.new_empty(rays), random.new_empty(rays),
            images.new_empty(rays), random.new_empty(rays, pixels.shape[1]))  # fmt: skip


def _fake_adapt_ray_count(value, counts, capacity, samples, fill, growth):
    return None


if kernels is not reference_draw:
    torch.library.register_fake("raymarching::draw_rays", _fake_draw_rays)
    torch.library.register_fake("raymarching::adapt_ray_count", _fake_adapt_ray_count)
