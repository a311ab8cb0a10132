"""The rays, occupancy and samples that the kernels work on: of a scene that was trained for a little, or of balls in a box."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import raymarching
from nerf.errors import UserError
from nerf.sampling.occupancy import OccupancyGrid, OccupancySampler

BOUND, MIN_NEAR = 2.0, 0.05
BALLS = 12
POOL = 2**14  # different rays; a larger size repeats them
SPARE = 1.02  # more rays than fill the buffer, so that it is full


@dataclass(frozen=True)
class Pool:
    """Rays [P] and what they march through; `march` are the settings of raymarching.march_rays_train."""

    origins: torch.Tensor
    directions: torch.Tensor
    near: torch.Tensor
    far: torch.Tensor
    bits: torch.Tensor
    march: dict


@dataclass(frozen=True)
class Work:
    """The arguments of the march of N rays into M rows, and the samples that it gives: positions, directions [M, 3], t, dt [M], rays [N, 2]."""

    march_arguments: tuple
    march: dict  # with the capacity M
    positions: torch.Tensor
    directions: torch.Tensor
    t: torch.Tensor
    dt: torch.Tensor
    rays: torch.Tensor
    used: int  # rows that are no padding

    def unit_positions(self):
        """Positions in [0, 1]^3, as a hash grid takes them."""
        return (self.positions + self.march["bound"]) / (2 * self.march["bound"])


def synthetic_pool(device, grid_size, seed=0):
    """Rays from a sphere round a box of balls, whose cells are occupied."""
    generator = torch.Generator(device).manual_seed(seed)
    grid = OccupancyGrid(BOUND, grid_size).to(device)
    middles = grid.positions(torch.arange(len(grid.density), device=device))
    centres = (torch.rand(BALLS, 3, device=device, generator=generator) - 0.5) * BOUND
    radii = 0.05 + 0.2 * torch.rand(BALLS, device=device, generator=generator)
    for centre, radius in zip(centres, radii, strict=True):
        grid.density[(middles - centre).norm(dim=1) < radius] = 1.0
    grid.refresh_bits()
    outside = torch.nn.functional.normalize(torch.randn(POOL, 3, device=device, generator=generator), dim=1)
    towards = (torch.rand(POOL, 3, device=device, generator=generator) - 0.5) * BOUND
    directions = torch.nn.functional.normalize(towards - outside, dim=1)
    box = torch.tensor([-BOUND] * 3 + [BOUND] * 3, device=device)
    near, far = raymarching.near_far_from_aabb(outside, directions, box, MIN_NEAR)
    return Pool(outside, directions, near, far, grid.bits, OccupancySampler(grid, 0, 0, dt_gamma=1 / 256, max_steps=1024, contract=False).march)


def scene_pool(scene, flags, device, steps):
    """One batch of the rays of a scene, and the occupancy that `steps` steps of training found. `flags` go to the trainer."""
    from nerf.options import parse_options, resolve
    from nerf.scene import load_scene
    from nerf.training import Trainer

    with tempfile.TemporaryDirectory(prefix="bench_kernels_") as folder:
        options = resolve(parse_options([scene, *flags, "--workspace", folder]), device)
        trainer = Trainer(load_scene(options), options, device, Path(folder))
        for _ in range(steps):
            trainer.advance()
        source = trainer.step.source
        every = torch.full((1,), source.capacity, dtype=torch.int32, device=device)
        rays = source.draw(torch.rand(source.capacity, 3, device=device), every).rays
        sampler = trainer.step.sampler
    return Pool(rays.origins, rays.directions, rays.near, rays.far, sampler.grid.bits, sampler.march)


def work_of_size(pool, samples, seed=0):
    """Work whose rays, taken from the pool in turn, fill `samples` rows."""
    device = pool.near.device
    generator = torch.Generator(device).manual_seed(seed)

    def arguments(count):
        chosen = torch.arange(count, device=device) % len(pool.near)
        rays = (tensor.index_select(0, chosen) for tensor in (pool.origins, pool.directions, pool.near, pool.far))
        noise = torch.rand(count, device=device, generator=generator)
        return (*rays, noise, torch.full((1,), count, dtype=torch.int32, device=device), pool.bits)

    *_, counts = raymarching.march_rays_train(*arguments(len(pool.near)), **pool.march, capacity=1)
    wanted = int(counts[2]) / len(pool.near)
    if wanted == 0:
        raise UserError("The rays meet nothing that is occupied: train longer (--steps).")
    march_arguments, march = arguments(math.ceil(SPARE * samples / wanted)), pool.march | {"capacity": samples}
    positions, directions, t, dt, _, rays, counts = raymarching.march_rays_train(*march_arguments, **march)
    return Work(march_arguments, march, positions, directions, t, dt, rays, int(counts[0]))
