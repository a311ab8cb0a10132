"""The occupancy grid: where its cells are, what an update sees, and what is never sampled."""

import numpy as np
import pytest
import torch

from nerf.rays import Views
from nerf.sampling import OccupancyGrid, OccupancySampler
from nerf.sampling.occupancy import FULL_UPDATES, UNTRAINED
from nerf.scene import Cameras


def ball(centre, radius):
    centre = torch.tensor(centre)
    return lambda positions: ((positions - centre).norm(dim=-1) < radius).float() * 50


def updated(grid, density, updates=FULL_UPDATES + 4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        grid.update(density, generator)
    return grid


def bits_of(grid):
    return torch.from_numpy(np.unpackbits(grid.bits.numpy(), bitorder="little")).bool()


def looking_at_origin(count=6, distance=3.0, size=(32, 24), focal=40):
    """Cameras on a ring, z up, looking at the origin."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        place = distance * np.array([np.cos(angle), np.sin(angle), 0.3])
        back = place / np.linalg.norm(place)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, place], axis=1))
    n = len(poses)
    sizes = np.tile(np.array(size, dtype=np.int32), (n, 1))
    intrinsics = np.tile(np.array([focal, focal, size[0] / 2, size[1] / 2], dtype=np.float32), (n, 1))
    return Cameras(np.stack(poses).astype(np.float32), intrinsics, np.zeros((n, 6), np.float32), np.zeros(n, np.int32), sizes,
                   np.full(n, 0.05, np.float32), np.full(n, np.inf, np.float32))  # fmt: skip


def views_of(cameras, bound=1.0):
    aabb = np.array([-bound] * 3 + [bound] * 3, dtype=np.float32)
    return Views(cameras, aabb, torch.device("cpu"))


def test_every_cell_of_every_cascade_has_its_place():
    grid = OccupancyGrid(4.0, size=16)
    assert grid.cascades == 3
    for c, half in enumerate((1.0, 2.0, 4.0)):
        middle = grid.positions(torch.arange(c * 16**3, (c + 1) * 16**3))
        assert middle.abs().max().item() == pytest.approx(half * (1 - 1 / 16))
        assert len(torch.unique(middle, dim=0)) == 16**3
    jittered = grid.positions(torch.arange(16**3), torch.Generator().manual_seed(0))
    assert ((jittered - grid.positions(torch.arange(16**3))).abs() <= 1 / 16 + 1e-6).all()


@pytest.mark.parametrize("bound, cascades", [(0.5, 1), (1, 1), (2, 2), (3, 3), (8, 4), (16, 5)])
def test_cascades_cover_the_bound(bound, cascades):
    grid = OccupancyGrid(bound, size=8)
    assert grid.cascades == cascades
    assert grid.half_sides[-1] == bound


def test_updates_find_what_is_there_and_chunks_do_not_matter():
    density = ball([0.3, -0.2, 0.1], 0.4)
    whole, chunked = (updated(OccupancyGrid(1.0, size=16, chunk=chunk), density, updates=3) for chunk in (2**18, 1000))
    middles = whole.positions(torch.arange(16**3))
    inside = (middles - torch.tensor([0.3, -0.2, 0.1])).norm(dim=-1)
    margin = 3**0.5 / 16
    for grid in (whole, chunked):
        assert bits_of(grid)[inside < 0.4 - margin].all()
        assert not bits_of(grid)[inside > 0.4 + margin].any()


def test_what_vanishes_is_forgotten():
    grid = updated(OccupancyGrid(1.0, size=8), ball([0.0, 0.0, 0.0], 0.5))
    before = bits_of(grid).sum()
    updated(grid, lambda positions: torch.full((len(positions),), 1e-3), updates=400)
    assert before > 0
    assert grid.density.max() < 0.5


def test_a_grid_without_any_occupied_cell_goes_on():
    grid = updated(OccupancyGrid(2.0, size=8), lambda positions: torch.zeros(len(positions)))
    assert not bits_of(grid).any()
    assert grid.updates == FULL_UPDATES + 4


def test_cells_that_no_view_sees_are_never_occupied():
    cameras = looking_at_origin(count=1, focal=120)
    grid = OccupancyGrid(1.0, size=16)
    grid.mark_untrained(views_of(cameras))
    middle = grid.positions(torch.arange(16**3))
    local = (middle - torch.from_numpy(cameras.poses[0, :, 3])) @ torch.from_numpy(cameras.poses[0, :, :3])
    pixel = torch.stack([120 * local[:, 0] / -local[:, 2] + 16, -120 * local[:, 1] / -local[:, 2] + 12], dim=-1)
    seen = (pixel >= 0).all(-1) & (pixel[:, 0] <= 32) & (pixel[:, 1] <= 24)
    far_off = ((pixel < -18) | (pixel > torch.tensor([50.0, 42.0]))).any(-1)
    untrained = grid.density == UNTRAINED
    assert not untrained[seen].any()
    assert untrained[far_off].all() and far_off.sum() > 100
    updated(grid, lambda positions: torch.full((len(positions),), 99.0), updates=FULL_UPDATES + 2)
    assert not bits_of(grid)[untrained].any()
    assert bits_of(grid)[seen].all()


def test_samples_lie_on_their_rays_inside_occupied_cells():
    views = views_of(looking_at_origin())
    grid = updated(OccupancyGrid(1.0, size=32), ball([0.0, 0.0, 0.0], 0.5))
    rays = views.image_rays(2)
    samples, packing, *_ = OccupancySampler(grid, 500, 2**15, 0.0, 256, False).place(rays, torch.rand(1, len(rays.near)))
    count = int(packing.counts[0])
    used = samples.select(torch.arange(count))
    assert 1000 < count == packing.counts[2] and packing.kept().all()
    assert (used.positions.norm(dim=-1) < 0.5 + 2 * 3**0.5 / 32 + 0.02).all()
    ray = used.ray_index.long()
    torch.testing.assert_close(used.positions, rays.origins[ray] + used.t[:, None] * rays.directions[ray], rtol=1e-4, atol=1e-5)
    assert (samples.ray_index[count:] == -1).all() and (samples.dt[count:] == 0).all()


def test_rays_that_do_not_fit_are_left_out_whole():
    views = views_of(looking_at_origin())
    grid = updated(OccupancyGrid(1.0, size=32), ball([0.0, 0.0, 0.0], 0.5))
    rays = views.image_rays(2)
    _, packing, *_ = OccupancySampler(grid, 500, 1000, 0.0, 256, False).place(rays, torch.rand(1, len(rays.near)))
    written, kept, wanted = packing.counts.tolist()
    assert written <= 1000 < wanted and 0 < kept < len(packing.rays)
    assert packing.rays[kept:, 1].sum() == 0
    assert packing.rays[:kept, 1].sum() == written
