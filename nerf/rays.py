"""From pixels to rays on the device, and the rays that a training step draws."""

import copy
from typing import NamedTuple

import numpy as np
import torch

import raymarching
from nerf.samples import Rays

FILL = 0.96  # the part of the sample capacity that is aimed at, so that chance seldom overfills it
GROWTH = 2.0  # most by which the number of rays changes in a step


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

    def adapt(self, counts):
        """Follows the samples that the rays of the last step wanted: counts [3] of a Packing."""
        if self.adaptive:
            raymarching.adapt_ray_count(self.value, counts, self.capacity, self.samples, FILL, GROWTH)


class RaySource:
    """Draws training rays: a random pixel of a random photo, each.

    Photos live on `device` when preloaded; a draw then never leaves the device. Else they stay in host memory, `fetch` draws there before each step, and the
    pixels follow into buffers on the device.

    Args:
        scene: nerf.scene.Scene; indices: [k] int64, the photos to draw from.
        views: Views of all the scene's cameras, on the device of the rays.
        capacity: N; preload: photos on the device; mixed: every ray draws its own photo, else one photo a step.
        seed: of the generator of what is drawn on the host.
    """

    def __init__(self, scene, indices, views, capacity, preload, mixed, seed):
        self.views, self.capacity, self.mixed = views, capacity, mixed
        device = views.poses.device
        store = device if preload else torch.device("cpu")
        self.preloaded = store == device
        self.pixels, offsets = _store(scene.photos, indices, store)
        self.offsets = torch.from_numpy(offsets).to(store)
        self.indices = torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(store)
        self.sizes = torch.from_numpy(scene.cameras.sizes[indices].astype(np.int64)).to(store)
        self.numbers = torch.zeros(len(scene.cameras.sizes), dtype=torch.int64)  # of each view among the photos drawn from
        self.numbers[torch.from_numpy(np.asarray(indices, dtype=np.int64))] = torch.arange(len(indices))
        self.numbers = self.numbers.to(device)
        self.generator = torch.Generator().manual_seed(seed)
        if not self.preloaded:
            buffer = {"device": device}
            self.image, self.xy = torch.zeros(capacity, dtype=torch.int64, **buffer), torch.zeros(capacity, 2, **buffer)
            self.target = torch.zeros(capacity, self.pixels.shape[1], dtype=torch.uint8, **buffer)

    def fetch(self):
        """Draws pixels of photos in host memory and sends them on their way to the device."""
        if self.preloaded:
            return
        n = self.capacity
        chosen = torch.randint(len(self.indices), (n if self.mixed else 1,), generator=self.generator).expand(n)
        size = self.sizes.index_select(0, chosen)
        xy = torch.minimum((torch.rand((n, 2), generator=self.generator) * size).long(), size - 1)
        target = self.pixels.index_select(0, self.offsets.index_select(0, chosen) + xy[:, 1] * size[:, 0] + xy[:, 0])
        drawn = (self.image, self.indices.index_select(0, chosen)), (self.xy, xy + 0.5), (self.target, target)
        for buffer, values in drawn:
            buffer.copy_(values.pin_memory(), non_blocking=True)

    def draw(self, random, count):
        """A Batch of N = `capacity` rays.

        Args:
            random: [N, 3] float32 in [0, 1), from which photo and pixel follow (photos in host memory: not used, see `fetch`).
            count: [1] int32, how many of the N are in use.
        """
        if not self.preloaded:
            return Batch(self.views.rays(self.image, self.xy, count), self.target.float() / 255)
        views = self.views
        cameras = views.poses, views.intrinsics, views.distortion, views.lens, views.near, views.far, views.aabb
        photos = self.pixels, self.offsets, self.sizes, self.indices
        origins, directions, near, far, image, target = raymarching.draw_rays(random, count, *photos, self.mixed, *cameras)
        return Batch(Rays(origins, directions, near, far, image, count), target)


def _store(photos, indices, device):
    """The photos' pixels [P, C] uint8 on the device, and the first row [k] int64 of each of `indices`: host memory is shared, a device gets a copy of those alone."""
    if device.type == "cpu":
        return torch.from_numpy(photos.pixels), photos.offsets[np.asarray(indices)]
    lengths = np.diff(photos.offsets)[indices]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pixels = torch.empty((int(offsets[-1]), photos.pixels.shape[1]), dtype=torch.uint8, device=device)
    for k, index in enumerate(indices):
        pixels[offsets[k] : offsets[k + 1]] = torch.from_numpy(photos.pixels[photos.offsets[index] : photos.offsets[index + 1]])
    return pixels, offsets[:-1]
