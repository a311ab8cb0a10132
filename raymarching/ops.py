"""The public operators: argument checks, gradients and the meaning of every argument.

Notation: N rays, M sample rows, A alive rays, n images, K channels. Directions are unit vectors, t is distance along the ray in world
units. A sample covers [t - dt/2, t + dt/2]; padding rows have dt = 0. All tensors of a call are on one device and float32 unless said
otherwise. Bad arguments raise TypeError (dtype) or ValueError (shape, device, value) and name the argument.
"""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels

from . import reference
from .checks import (
    MAX_CHANNELS,
    check_at_least,
    check_contiguous,
    check_march,
    check_tensors,
    check_threshold,
)
from .fakes import register_fakes

kernels = load_kernels(__package__, Path(__file__).parent) or reference
if kernels is not reference:
    register_fakes()


def generate_rays(image, pixels, poses, intrinsics, distortion, lens):
    """World rays through pixels, with each lens inverted at its pixel (Newton; where no point maps to the pixel, the nearest that does).

    Args:
        image: [N] int64, which image each pixel belongs to. A row outside [0, n) gives a NaN ray, which misses every box.
        pixels: [N, 2], x to the right and y down, in pixels; centres are at +0.5.
        poses: [n, 3, 4] camera to world; the camera looks along -z, y up (OpenGL).
        intrinsics: [n, 4] fx, fy, cx, cy in pixels.
        distortion: [n, 6] k1, k2, k3, k4, p1, p2.
        lens: [n] int32, 0 = perspective (radial and tangential), 1 = fisheye (OpenCV's models).
    Returns:
        origins [N, 3] and unit directions [N, 3]. Not differentiable.
    """
    rays, images = _size(image, "image"), _size(poses, "poses")
    check_tensors(
        image=(image, torch.int64, (rays,)),
        pixels=(pixels, torch.float32, (rays, 2)),
        poses=(poses, torch.float32, (images, 3, 4)),
        intrinsics=(intrinsics, torch.float32, (images, 4)),
        distortion=(distortion, torch.float32, (images, 6)),
        lens=(lens, torch.int32, (images,)),
    )
    return kernels.generate_rays(image, pixels, poses, intrinsics, distortion, lens)


def near_far_from_aabb(origins, directions, aabb, min_near):
    """Where each ray is inside a box (slab test).

    Args:
        origins, directions: [N, 3].
        aabb: [6], the lower then the upper corner.
        min_near: least near, in world units.
    Returns:
        near [N] >= min_near and far [N]. A ray that misses, is NaN or has a zero direction gets near = far = float32 max.
    """
    check_tensors(
        origins=(origins, torch.float32, (None, 3)),
        directions=(directions, torch.float32, (_size(origins, "origins"), 3)),
        aabb=(aabb, torch.float32, (6,)),
    )
    return kernels.near_far_from_aabb(origins, directions, aabb, min_near)


def morton3D(coords):
    """Morton codes of cells: coords [N, 3] int32 in [0, 1024) -> [N] int32; x has the lowest bit."""
    check_tensors(coords=(coords, torch.int32, (None, 3)))
    return kernels.morton3D(coords)


def morton3D_invert(indices):
    """Cells of Morton codes: indices [N] int32 -> [N, 3] int32."""
    check_tensors(indices=(indices, torch.int32, (None,)))
    return kernels.morton3D_invert(indices)


def packbits(density, threshold):
    """Eight cells a byte: density [K] (K a multiple of 8), threshold [1] -> uint8 [K / 8]; set where density > threshold."""
    check_tensors(density=(density, torch.float32, (None,)), threshold=(threshold, torch.float32, (1,)))
    if density.numel() % 8:
        raise ValueError(f"density must hold a multiple of 8 cells, got {density.numel()}")
    return kernels.packbits(density, threshold)


def contract(positions):
    """MeRF's contraction of space to max-norm below 2 (arXiv 2302.12249, equation 2); the march uses the same function.

    Inside the unit cube the identity. Outside, with m the max-norm, the dominant axis becomes sign (2 - 1/m), the others are divided by m.

    Args:
        positions: [N, 3].
    Returns:
        [N, 3]. Not differentiable.
    """
    check_tensors(positions=(positions, torch.float32, (None, 3)))
    return kernels.contract(positions)


def flatten_rays(rays, samples):
    """The ray of each packed sample: the inverse of `rays`.

    Args:
        rays: [N, 2] int32 = (first, count); rays share no samples. A row that points outside the samples counts as empty.
        samples: M, rows of the sample buffers.
    Returns:
        [M] int32, -1 where a sample belongs to no ray.
    Raises:
        ValueError: samples is negative or needs more than 31 bits.
    """
    check_tensors(rays=(rays, torch.int32, (None, 2)))
    if not 0 <= samples < 2**31:
        raise ValueError(f"samples must be from 0 to 2^31 - 1 rows, got {samples}")
    return kernels.flatten_rays(rays, samples)


def sph_from_ray(origins, directions, radius):
    """Where each ray leaves a sphere around the origin, as angles: the coordinates of a background texture (NeRF++, arXiv 2010.07492).

    Args:
        origins, directions: [N, 3]; directions of any length.
        radius: of the sphere, in world units.
    Returns:
        [N, 2] in [-1, 1]: 2 theta / pi - 1 with theta the angle from +y, and phi / pi with phi the azimuth from +x towards +z. NaN for a
        ray that misses the sphere or is NaN. Not differentiable.
    Raises:
        ValueError: radius is not positive.
    """
    check_tensors(origins=(origins, torch.float32, (None, 3)), directions=(directions, torch.float32, (_size(origins, "origins"), 3)))
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be positive and finite, got {radius}")
    return kernels.sph_from_ray(origins, directions, radius)


def march_rays_train(
    origins, directions, near, far, noise, num_rays, bitfield, *, bound, cascades, grid_size, contract, dt_gamma, max_steps, capacity
):
    """Samples in the occupied cells along each ray, packed in ray order into buffers of fixed capacity. Nothing is read by the host.

    Steps are t_{k+1} = t_k + dt_k with dt_k = clamp(t_k dt_gamma, 2 sqrt(3) / max_steps, 2 sqrt(3) bound / grid_size), from near + noise
    dt(near) on while a step starts before far. They do not depend on what is occupied, so that many steps of a ray can be looked at at
    once. In groups of 32 they are computed in closed form where dt is constant or grows throughout, which rounds less. A step is a sample
    where the cell around its middle is occupied. Cascade c covers the cube of half side min(2^c, bound); a sample looks in the smallest
    that holds it and whose cells are no smaller than its step. A ray is kept when all its samples and those of all rays before it fit
    the capacity. A ray with a NaN or infinite origin or direction, or a NaN near, far or noise, takes no samples.

    Args:
        origins, directions: [N, 3].
        near, far: [N], from `near_far_from_aabb`.
        noise: [N] in [0, 1): start of the first step, in steps.
        num_rays: [1] int32; rays from this index on take no samples.
        bitfield: uint8 [cascades grid_size^3 / 8] from `packbits`, cells in Morton order.
        bound: half side of the scene's cube; 2 with `contract`.
        cascades, grid_size: of the occupancy grid; at most 64 cascades, grid_size a power of two from 4 to 1024.
        contract: look up and report contracted positions.
        dt_gamma: growth of the step with distance; 0 = constant.
        max_steps: most samples a ray; at least 1.
        capacity: M, rows of the sample buffers.
    Returns:
        positions [M, 3], directions [M, 3], t [M], dt [M], ray_index [M] int32 (-1 = padding; all else in a padding row is 0),
        rays [N, 2] int32 = (first, count), counts [3] int32 = (samples written, rays kept, samples wanted). Not differentiable.
    """
    rays = _size(origins, "origins")
    check_tensors(
        origins=(origins, torch.float32, (rays, 3)),
        directions=(directions, torch.float32, (rays, 3)),
        near=(near, torch.float32, (rays,)),
        far=(far, torch.float32, (rays,)),
        noise=(noise, torch.float32, (rays,)),
        num_rays=(num_rays, torch.int32, (1,)),
        bitfield=(bitfield, torch.uint8, (None,)),
    )
    check_march(bitfield, bound, cascades, grid_size, contract, dt_gamma, max_steps)
    if not 0 <= capacity < 2**31:
        raise ValueError(f"capacity must be from 0 to 2^31 - 1 rows, got {capacity}")
    return kernels.march_rays_train(
        origins, directions, near, far, noise, num_rays, bitfield, bound=bound, cascades=cascades, grid_size=grid_size, contract=contract,
        dt_gamma=dt_gamma, max_steps=max_steps, capacity=capacity,
    )  # fmt: skip


class _CompositeRays(torch.autograd.Function):
    @staticmethod
    def forward(ctx, density, features, t, dt, rays, T_thresh):
        ctx.set_materialize_grads(False)  # most steps have no gradient at the weights: no reason to make zeros for them
        ctx.save_for_backward(density, features, t, dt, rays)
        ctx.T_thresh = T_thresh
        return kernels.composite_rays_train_forward(density, features, t, dt, rays, T_thresh)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_composited, grad_opacity, grad_depth, grad_weights):
        grad_density, grad_features = kernels.composite_rays_train_backward(
            grad_composited, grad_opacity, grad_depth, grad_weights, *ctx.saved_tensors, ctx.T_thresh
        )
        return grad_density, grad_features, None, None, None, None


def composite_rays_train(density, features, t, dt, rays, T_thresh):
    """Composites packed samples into rays (emission and absorption; Mildenhall et al. 2020, equation 3).

    alpha = 1 - exp(-density dt), weight = T alpha with T the product of (1 - alpha) before. Once T is below T_thresh, later samples
    have weight and gradient 0; the sample that crosses still counts. Infinite density is an opaque sample with gradient 0.
    Differentiable once with respect to density and features, through any gradient at the four outputs. Float64 throughout on the CPU also.
    Half density or features are widened: all arithmetic and all outputs are float32, and their gradients come back in half.

    Args:
        density: [M] >= 0.
        features: [M, K], K from 1 to 16.
        t, dt: [M].
        rays: [N, 2] int32 = (first, count); rays share no samples. A row that points outside the M samples counts as empty.
        T_thresh: transmittance at which a ray stops, in [0, 1].
    Returns:
        composited [N, K] = sum w f, opacity [N] = sum w, depth [N] = sum w t (not divided by opacity), weights [M].
    """
    density, features = _widened(density), _widened(features)
    dtype = torch.float64 if getattr(density, "dtype", None) == torch.float64 else torch.float32
    samples = _size(density, "density")
    check_tensors(
        density=(density, dtype, (samples,)),
        features=(features, dtype, (samples, None)),
        t=(t, dtype, (samples,)),
        dt=(dt, dtype, (samples,)),
        rays=(rays, torch.int32, (None, 2)),
    )
    _check_channels(features)
    check_threshold(T_thresh)
    return _CompositeRays.apply(density, features, t, dt, rays, T_thresh)


def march_rays(
    alive, t_now, origins, directions, far, bitfield, *, steps, bound, cascades, grid_size, contract, dt_gamma, max_steps
):  # fmt: skip
    """One round of rendering: the next samples of each alive ray, on the same steps as `march_rays_train` without noise.

    Args:
        alive: [A] int32, ray numbers; -1 (finished) gets padding.
        t_now: [N], where each ray goes on; starts as near.
        origins, directions: [N, 3]; far: [N]; bitfield and the settings as in `march_rays_train`.
        steps: samples a ray and round. The caller bounds the number of rounds; max_steps only sets the least step.
    Returns:
        positions [A steps, 3], directions [A steps, 3], t [A steps], dt [A steps] (0 = padding), t_next [A].
    """
    rays = _size(origins, "origins")
    check_tensors(
        alive=(alive, torch.int32, (None,)),
        t_now=(t_now, torch.float32, (rays,)),
        origins=(origins, torch.float32, (rays, 3)),
        directions=(directions, torch.float32, (rays, 3)),
        far=(far, torch.float32, (rays,)),
        bitfield=(bitfield, torch.uint8, (None,)),
    )
    check_march(bitfield, bound, cascades, grid_size, contract, dt_gamma, max_steps)
    check_at_least(1, steps=steps)
    return kernels.march_rays(
        alive, t_now, origins, directions, far, bitfield, steps=steps, bound=bound, cascades=cascades, grid_size=grid_size,
        contract=contract, dt_gamma=dt_gamma, max_steps=max_steps,
    )  # fmt: skip


def composite_rays(alive, t_now, t_next, density, features, t, dt, composited, opacity, depth, T_thresh):
    """Adds one round of `march_rays` to the picture, in place.

    Args:
        alive: [A] int32, changed: -1 where the ray is finished (T below T_thresh, or fewer than `steps` samples were left).
        t_now: [N], changed: t_next of each ray of this round.
        t_next: [A]; density [A steps], features [A steps, K], t and dt [A steps]; density or features may be half.
        composited [N, K], opacity [N], depth [N]: changed; zeros before the first round.
        T_thresh: transmittance at which a ray stops, in [0, 1].
    """
    density, features = _widened(density), _widened(features)
    alive_rays, rays, samples = _size(alive, "alive"), _size(t_now, "t_now"), _size(density, "density")
    check_tensors(
        alive=(alive, torch.int32, (alive_rays,)),
        t_now=(t_now, torch.float32, (rays,)),
        t_next=(t_next, torch.float32, (alive_rays,)),
        density=(density, torch.float32, (samples,)),
        features=(features, torch.float32, (samples, None)),
        t=(t, torch.float32, (samples,)),
        dt=(dt, torch.float32, (samples,)),
        composited=(composited, torch.float32, (rays, _size(features, "features", axis=-1))),
        opacity=(opacity, torch.float32, (rays,)),
        depth=(depth, torch.float32, (rays,)),
    )
    _check_channels(features)
    check_threshold(T_thresh)
    if samples != 0 if alive_rays == 0 else samples % alive_rays:
        raise ValueError(f"density must hold the same number of samples for each of the {alive_rays} alive rays, got {samples}")
    check_contiguous(alive=alive, t_now=t_now, composited=composited, opacity=opacity, depth=depth)
    kernels.composite_rays(alive, t_now, t_next, density, features, t, dt, composited, opacity, depth, T_thresh)


def _size(tensor, name, axis=0):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    return tensor.shape[axis] if tensor.dim() else None


def _widened(tensor):
    """Half as float32, anything else as it is (for the checks to judge)."""
    return tensor.float() if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16 else tensor


def _check_channels(features):
    if not 1 <= features.shape[1] <= MAX_CHANNELS:
        raise ValueError(f"features must have 1 to {MAX_CHANNELS} channels, got {features.shape[1]}")
