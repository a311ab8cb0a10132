"""Rays and the samples along them: the notation that everything else uses.

N rays, of which the first `count` are in use; M samples in ray order, of which the first `counts[0]` are in use; the rest is padding, so that
every shape is known before a step starts. Ray r holds samples rays[r, 0] ... rays[r, 0] + rays[r, 1] - 1. Directions have unit length, t is the distance along
the ray in world units, and a sample covers [t - dt/2, t + dt/2].
"""

from dataclasses import dataclass, fields, replace

import torch

from samplemining import take_rows


@dataclass(frozen=True)
class Rays:
    """N rays on the device.

    origins, directions [N, 3] float32; near, far [N] float32, where sampling may happen (near >= far: nowhere); image [N] int64, the view that each
    belongs to; count [1] int32, how many of the N are in use.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    near: torch.Tensor
    far: torch.Tensor
    image: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True)
class Samples:
    """M samples on the device.

    positions [M, 3] float32 in field space (contracted where the sampler contracts); directions [M, 3] float32; t, dt [M] float32;
    ray_index [M] int32, the ray of each (-1: padding); image [M] int64, the training photo of each, or None where nobody asks for it.
    """

    positions: torch.Tensor
    directions: torch.Tensor
    t: torch.Tensor
    dt: torch.Tensor
    ray_index: torch.Tensor
    image: torch.Tensor | None = None

    def select(self, index):
        """The samples of the rows index [R] int64, R of them."""
        columns = [getattr(self, field.name) for field in fields(self)]
        return Samples(*take_rows([column for column in columns if column is not None], index))

    def at(self, positions, directions):
        """The same samples at positions [M, 3], seen along directions [M, 3]."""
        return replace(self, positions=positions, directions=directions)

    def of_images(self, image):
        """The same samples, each with the image of its ray, of image [N] int64 (padding: that of the first ray)."""
        return replace(self, image=image.index_select(0, self.ray_index.clamp(min=0)))


@dataclass(frozen=True)
class Packing:
    """How samples belong to rays.

    rays [N, 2] int32 = (first, count); counts [3] int32 = (samples in use, rays kept, samples that all rays wanted). Rays beyond those kept did not fit
    and have no samples: they must not enter a loss.
    """

    rays: torch.Tensor
    counts: torch.Tensor

    def kept(self):
        """[N] bool: the rays that are in use and whose samples fitted."""
        return torch.arange(len(self.rays), device=self.rays.device) < self.counts[1]
