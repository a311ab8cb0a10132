"""From pixels to rays on the device, and the rays that a training step draws."""

import copy
from typing import NamedTuple

import numpy as np
import torch

import raymarching
from nerf.allowed_pixels import AllowedPixels
from nerf.errors import UserError
from nerf.photo_pool import PhotoPool
from nerf.samples import Rays

FILL = 0.96  # the part of the sample capacity that is aimed at, so that chance seldom overfills it
GROWTH = 2.0  # most by which the number of rays changes in a step
PHOTO_SHARE = 0.5  # of the free device memory that photos may take by themselves
GIB = 2**30


class Views:
    """Cameras on the device.

    Args:
        cameras: nerf.scene.Cameras, n of them.
        aabb: [6] float32, the box outside which nothing is sampled.
    """

    def __init__(self, cameras, aabb, device):
        def to_device(array):
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.poses, self.intrinsics, self.distortion = map(to_device, (cameras.poses, cameras.intrinsics, cameras.distortion))
        self.lens, self.sizes, self.near, self.far = map(to_device, (cameras.lens, cameras.sizes, cameras.near, cameras.far))
        self.aabb = to_device(aabb)

    def with_poses(self, poses):
        """The same views from other poses [n, 3, 4]: that very tensor is read each time."""
        views = copy.copy(self)
        views.poses = poses
        return views

    def rays(self, image, pixels, count=None):
        """The rays of pixels.

        Args:
            image: [N] int64, the view of each; pixels: [N, 2] float32 (x, y), centres at +0.5.
            count: [1] int32, how many of the N are in use; default all.
        Returns:
            Rays.
        """
        origins, directions = raymarching.generate_rays(image, pixels, self.poses, self.intrinsics, self.distortion, self.lens)
        near, far = raymarching.near_far_from_aabb(origins, directions, self.aabb, 0.0)
        near = torch.maximum(near, self.near.index_select(0, image))
        far = torch.minimum(far, self.far.index_select(0, image))
        count = torch.full((1,), len(image), dtype=torch.int32, device=image.device) if count is None else count
        return Rays(origins, directions, near, far, image, count)

    def image_rays(self, index):
        """All rays of view `index`, row by row: Rays with N = H W."""
        width, height = self.sizes[index].tolist()
        device = self.poses.device
        y, x = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
        return self.rays(torch.full((len(pixels),), index, dtype=torch.int64, device=device), pixels)


class Batch(NamedTuple):
    """Rays of a step with what the photos show there: target [N, 3 or 4] float32 in [0, 1] (the fourth is alpha)."""

    rays: Rays
    target: torch.Tensor


class RayCount:
    """How many rays a step draws, kept on the device, such that their samples just fill the capacity.

    Args:
        first: the number of the first step; adaptive: whether it follows the samples.
        capacity: the most rays; samples: the sample capacity M.
    """

    def __init__(self, first, adaptive, capacity, samples, device):
        self.adaptive, self.capacity, self.samples = adaptive, capacity, samples
        self.value = torch.full((1,), min(first, capacity), dtype=torch.int32, device=device)

    def load(self, saved):
        """Goes on from a saved number of rays [1], where it follows the samples; else the number is that of the options."""
        if self.adaptive:
            self.value.copy_(saved.clamp(max=self.capacity))

    def adapt(self, counts):
        """Follows the samples that the rays of the last step wanted: counts [3] of a Packing."""
        if self.adaptive:
            raymarching.adapt_ray_count(self.value, counts, self.capacity, self.samples, FILL, GROWTH)


class RaySource:
    """Draws training rays: a random pixel of a random photo, each; where there are masks, among the allowed pixels.

    Photos live on the device where they may and fit. Else they stay in host memory or on disk, and steps draw from a pool on the device (nerf/photo_pool.py).
    On a CPU, host memory is the device's.

    Args:
        scene: nerf.scene.Scene; indices: [k] int64, the photos to draw from.
        views: Views of all the scene's cameras, on the device of the rays.
        capacity: N; mixed: every ray draws its own photo, else one photo a step.
        cache: --image_cache; preload: whether "auto" may put the photos on the device.
        seed: of the generator by which the pool is filled.

    Attributes:
        on_device: whether all photos are there; note: a sentence that says where they are.
    """

    def __init__(self, scene, indices, views, capacity, cache, preload, mixed, seed):
        self.views, self.capacity, self.mixed = views, capacity, mixed
        device, photos = views.poses.device, scene.photos
        indices = np.asarray(indices, dtype=np.int64)
        self.indices = torch.from_numpy(indices).to(device)
        self.numbers = torch.zeros(len(scene.cameras.sizes), dtype=torch.int64, device=device)  # of each view among the photos drawn from
        self.numbers[self.indices] = torch.arange(len(indices), device=device)
        self.generator = torch.Generator().manual_seed(seed)
        self.on_device = _belong_on_device(photos, indices, cache, preload, device)
        if self.on_device:
            self.pixels, offsets = _store(photos, indices, device)
            self.offsets = torch.from_numpy(offsets).to(device)
            self.sizes = torch.from_numpy(scene.cameras.sizes[indices].astype(np.int64)).to(device)
            self.allowed = scene.masks and AllowedPixels(scene.masks, scene.cameras.sizes, indices, device)
            self.note = f"photos are kept in {'memory' if device.type == 'cpu' else 'the memory of the GPU'}"
        else:
            self.pool = PhotoPool(photos, indices, scene.cameras.sizes, mixed, scene.masks, device)
            self.note = f"photos are kept {'on disk' if photos.on_disk else 'in host memory'}, and parts of them follow to the device as they are needed"

    def fetch(self, step):
        """Brings what steps draw from to the state of a step; to be called before each. Raises UserError where photos on disk cannot be read."""
        if not self.on_device:
            self.pool.follow(self.generator.initial_seed(), step)

    def draw(self, random, count):
        """A Batch of N = `capacity` rays.

        Args:
            random: [N, 3] float32 in [0, 1), from which photo and pixel follow.
            count: [1] int32, how many of the N are in use.
        """
        views = self.views
        if not self.on_device:
            image, xy, colours = self.pool.draw(random)
            return Batch(views.rays(image, xy, count), colours.float() / 255)
        if self.allowed:
            random = self.allowed.aim(random, self.mixed)
        cameras = views.poses, views.intrinsics, views.distortion, views.lens, views.near, views.far, views.aabb
        photos = self.pixels, self.offsets, self.sizes, self.indices
        origins, directions, near, far, image, target = raymarching.draw_rays(random, count, *photos, self.mixed, *cameras)
        return Batch(Rays(origins, directions, near, far, image, count), target)


def _belong_on_device(photos, indices, cache, preload, device):
    """Whether all of a run's photos live on its device. Raises UserError where they are asked to and do not fit."""
    if device.type == "cpu":
        return not photos.on_disk
    if cache in ("cpu", "disk") or (cache == "auto" and not preload):
        return False
    needed, free = int(np.diff(photos.offsets)[indices].sum()) * photos.channels, torch.cuda.mem_get_info(device)[0]
    if cache == "gpu" and needed > free:
        raise UserError(f"--image_cache gpu: the photos need {needed / GIB:.1f} GiB of device memory where {free / GIB:.1f} GiB are free; give auto.")
    return cache == "gpu" or needed <= PHOTO_SHARE * free


def _store(photos, indices, device):
    """The photos' pixels [P, C] uint8 on the device, and the first row [k] int64 of each of `indices`: host memory is shared, a device gets a copy of those alone."""
    if device.type == "cpu":
        return torch.from_numpy(photos.pixels), photos.offsets[indices]
    lengths = np.diff(photos.offsets)[indices]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pixels = torch.empty((int(offsets[-1]), photos.channels), dtype=torch.uint8, device=device)
    for k, index in enumerate(indices):
        photo = np.empty((int(lengths[k]), photos.channels), dtype=np.uint8)
        photos.read(int(photos.offsets[index]), photo)
        pixels[offsets[k] : offsets[k + 1]] = torch.from_numpy(photo)
    return pixels, offsets[:-1]
