"""Sampling by an occupancy grid: march through the cells that hold something (Mueller et al. 2022, appendix C).

Cascade c is a grid of G^3 cells over the cube of half side min(2^c, bound), stored in Morton order; cell = c G^3 + Morton code. A cell's density is a
decaying maximum of densities seen at random points in it; -1 marks a cell that no training view can learn.
"""

import math

import torch
from torch import nn

import raymarching
from nerf.samples import Packing, Samples
from nerf.sampling.sampler import Placed, Sampler

DECAY = 0.95  # of a cell's density each time the cell is looked at
FULL_UPDATES = 16  # the first updates look at every cell that can be learned, later ones at about half as many
SHARE = 4  # of those, a later update looks at one in this many, and at as many that are occupied
UNTRAINED = -1.0
AT_ONCE = 2**20  # cells that simple arithmetic handles together: an update has to leave memory to the step


class OccupancyGrid(nn.Module):
    """Densities and occupancy bits of the cells.

    Args:
        bound: half side of the largest cube.
        size: G, cells a side.
        threshold: a cell is occupied above min(mean density, threshold).
        chunk: cells looked at together; bounds the memory of an update.
    Attributes:
        density [cascades G^3] float32, -1 where no training view can learn; bits [cascades G^3 / 8] uint8, set where a cell is occupied;
        cells [K] int32 ascending, those that can be learned.
    """

    def __init__(self, bound, size=128, threshold=10.0, chunk=2**17):
        super().__init__()
        self.bound, self.size, self.threshold, self.chunk = bound, size, threshold, chunk
        self.cascades = 1 + max(0, math.ceil(math.log2(bound)))
        self.updates = 0
        self.register_buffer("density", torch.zeros(self.cascades * size**3))
        self.register_buffer("bits", torch.full((self.cascades * size**3 // 8,), 255, dtype=torch.uint8))
        self.register_buffer("cells", torch.arange(len(self.density), dtype=torch.int32), persistent=False)
        half_sides = torch.tensor([min(2.0**c, float(bound)) for c in range(self.cascades)])
        self.register_buffer("half_sides", half_sides, persistent=False)

    def positions(self, cells, generator=None):
        """A point in each cell [K] int -> [K, 3] float32: at random with a generator, else the middle."""
        per_cascade = self.size**3
        corner = raymarching.morton3D_invert((cells % per_cascade).int()).float()
        inside = torch.rand(corner.shape, device=corner.device, generator=generator) if generator else 0.5
        unit = (corner + inside) * (2 / self.size) - 1
        return unit * self.half_sides.index_select(0, (cells // per_cascade).long())[:, None]

    def update(self, density, generator, run=None):
        """Looks at cells and sets the bits again: the first times at every cell, later at half as many.

        Args:
            density: positions [K, 3] -> density [K] float32.
            generator: torch.Generator on the grid's device.
            run: (name, work, variant) -> None, runs work(), which is the same each time for a variant, such as nerf.replay.Replay. Default: as it is.
        """
        everywhere = self.updates < FULL_UPDATES

        def look():
            self._look(density, generator, everywhere)

        if run:
            run("grid", look, everywhere)
        else:
            look()
        self.updates += 1

    @torch.no_grad()
    def _look(self, density, generator, everywhere):
        seen = torch.full_like(self.density, UNTRAINED)
        for cells in self._cells_to_look_at(generator, everywhere).split(self.chunk):
            seen.scatter_reduce_(0, cells.long(), density(self.positions(cells, generator)), "amax")
        for known, new in zip(self.density.split(AT_ONCE), seen.split(AT_ONCE)):
            fresh = torch.maximum(known * DECAY, new)
            known.copy_(torch.where((new >= 0) & (known >= 0), fresh, known))
        self.refresh_bits()

    def refresh_bits(self):
        """Sets the occupancy bits from the densities."""
        self.bits.copy_(raymarching.packbits(self.density, self._level()))

    def _level(self):
        """The density above which a cell is occupied, [1]."""
        total = torch.stack([part.clamp(min=0).sum() for part in self.density.split(AT_ONCE)]).sum()
        return (total / len(self.density)).clamp(max=self.threshold).view(1)

    def _cells_to_look_at(self, generator, everywhere):
        """int32, of the cells that can be learned: all; or one of each SHARE neighbours, and as many of the occupied ones, evenly spread. In Morton order, so
        that samples close in space are close in memory."""
        known, device = len(self.cells), self.cells.device
        if everywhere or known == 0:
            return self.cells
        some = -(-known // SHARE)
        place = torch.arange(some, device=device)
        random = torch.rand((2, some), device=device, generator=generator)
        anywhere = (place * SHARE + (random[0] * SHARE).long()).clamp(max=known - 1)
        running = (self.density > self._level()).index_select(0, self.cells).cumsum(0, dtype=torch.int32)
        rank = ((place + random[1]) * (running[-1:] / some)).int()
        occupied = torch.searchsorted(running, rank + 1).clamp(max=known - 1)
        return self.cells.index_select(0, torch.cat([anywhere, occupied]))

    def get_extra_state(self):
        """How often the cells were looked at: it decides how many are, the next time."""
        return {"updates": self.updates}

    def set_extra_state(self, state):
        self.updates = int(state["updates"])
        self.settle()

    def settle(self):
        """Finds the cells that can be learned; to be called when others changed `density` (set-up, not a step)."""
        cells = (self.density >= 0).nonzero()[:, 0].int()
        if cells.shape == self.cells.shape:
            self.cells.copy_(cells)  # where it is: recorded updates hold its address
        else:
            self.cells = cells

    @torch.no_grad()
    def mark_untrained(self, views):
        """Marks the cells outside the box or seen by no view, so that nothing is ever sampled there (set-up, not a step)."""
        window, cone = _windows(views)
        camera_from_world = views.poses[:, :, :3].transpose(1, 2)
        for first in range(0, len(self.density), self.chunk):
            cells = torch.arange(first, min(first + self.chunk, len(self.density)), device=self.density.device)
            middle = self.positions(cells)
            radius = math.sqrt(3) / self.size * self.half_sides[cells // self.size**3]
            seen = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
            for i in range(len(views.poses)):
                local = (middle - views.poses[i, :, 3]) @ camera_from_world[i].T
                seen |= _sees(local, radius, window[i], cone[i], views.lens[i] == 1, views.near[i])
            inside = ((middle + radius[:, None] > views.aabb[:3]) & (middle - radius[:, None] < views.aabb[3:])).all(dim=-1)
            self.density[cells[~(seen & inside)]] = UNTRAINED
        self.bits.copy_(raymarching.packbits(self.density, torch.full((1,), UNTRAINED / 2, device=self.density.device)))
        self.settle()


def _windows(views):
    """What each view sees, from the rays of its border: window [n, 4] = least and greatest x/depth, y/depth; cone [n] the widest angle from the axis."""
    windows, cones = [], []
    along = torch.linspace(0, 1, 33, device=views.poses.device)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    border = torch.cat([torch.stack(pair, -1) for pair in ((along, zero), (along, one), (zero, along), (one, along))])
    for i in range(len(views.poses)):
        image = torch.full((len(border),), i, dtype=torch.int64, device=border.device)
        local = views.rays(image, border * views.sizes[i]).directions @ views.poses[i, :, :3]
        depth = (-local[:, 2:]).clamp(min=1e-6)
        slope = local[:, :2] / depth
        windows.append(torch.cat([slope.amin(0), slope.amax(0)]))
        cones.append(torch.acos((-local[:, 2]).clamp(-1, 1)).amax())
    return torch.stack(windows), torch.stack(cones)


def _sees(local, radius, window, cone, fisheye, near):
    """[K] bool: do the balls at local [K, 3] (camera axes) of radius [K] touch what a view sees beyond `near`?"""
    depth = -local[:, 2]
    distance = local.norm(dim=-1)
    slope = local[:, :2] / depth.clamp(min=1e-6)[:, None]
    slack = (2 * radius / depth.clamp(min=1e-6))[:, None]
    framed = (depth > 0) & ((slope > window[:2] - slack) & (slope < window[2:] + slack)).all(dim=-1)
    angle = torch.acos((depth / distance.clamp(min=1e-6)).clamp(-1, 1))
    coned = angle - torch.asin((radius / distance.clamp(min=1e-6)).clamp(max=1)) < cone
    return (torch.where(fisheye, coned, framed) | (distance < radius)) & (distance + radius > near)


class OccupancySampler(Sampler):
    """Places the samples of training rays by marching through occupied cells.

    Args:
        grid: OccupancyGrid.
        rays: N, the most rays of a step; capacity: M, the sample capacity of a step.
        dt_gamma: a step grows as dt_gamma t (0: constant steps); max_steps: most samples a ray, and 2 sqrt(3) / max_steps the least step.
        contract: positions are contracted into [-2, 2]^3, which is the grid's cube.
        interval: steps between updates of the grid.
    """

    noises = 1  # where in its first step a ray starts
    adaptive = True

    def __init__(self, grid, rays, capacity, dt_gamma, max_steps, contract, interval=16):
        super().__init__()
        self.grid, self.most_rays, self.capacity, self.interval = grid, rays, capacity, interval
        self.march = {"bound": grid.bound, "cascades": grid.cascades, "grid_size": grid.size, "contract": contract, "dt_gamma": dt_gamma, "max_steps": max_steps}  # fmt: skip

    def place(self, rays, noise, learning=False):
        """As of Sampler."""
        *columns, packed, counts = raymarching.march_rays_train(
            rays.origins, rays.directions, rays.near, rays.far, noise[0], rays.count, self.grid.bits, capacity=self.capacity, **self.march
        )
        return Placed(Samples(*columns), Packing(packed, counts))

    def before_step(self, step, density, generator, run):
        """As of Sampler: every `interval` steps the grid looks at the field."""
        if step % self.interval == 0:
            self.grid.update(density, generator, run)

    def signature(self):
        """What a checkpoint must agree on to fit this sampler."""
        return {"cuda_ray": True, "grid_size": self.grid.size, "contract": self.march["contract"]}
