"""Field space and world: where the field lives, which of it is rendered at all, and how large a cell is there.

Positions y of a contracted field lie in [-2, 2]^3 and stand for world positions x (raymarching.contract); of any other field y = x.
"""

import torch

import raymarching
from nerf import volume
from nerf.sampling import OccupancyGrid, OccupancySampler

FARTHEST = 1e-6  # a contracted position is kept this far from the faces of the cube, which stand for infinity
LOOKS = 4  # at random points in each cell, where a grid is made for proposal networks
PROPOSAL_GRID = {"cuda": 128, "cpu": 64}  # its cells a side


class Space:
    """Where a model of a scene has matter.

    Args:
        model: nerf.model.Model; scene: nerf.scene.Scene; options: nerf.options.Options, resolved; device: torch.device.
    Attributes:
        grid: OccupancyGrid, the model's own, or one made of what the finest proposal network sees.
        half_sides: list of floats, of the cascades' cubes in field space; contract: whether that is not the world.
    """

    def __init__(self, model, scene, options, device):
        self.contract, self.device = options.contract, device
        self.box = torch.from_numpy(scene.aabb).to(device)
        if isinstance(model.sampler, OccupancySampler):
            self.grid = model.sampler.grid
        else:
            self.grid = _grid_of(model.sampler.proposals[-1], model.field.bound, options, device)
        self.half_sides = self.grid.half_sides.tolist()

    def occupied(self, cascade):
        """[G, G, G] bool by x, y, z: the cells of a cascade that are rendered."""
        size = self.grid.size
        axis = torch.arange(size, dtype=torch.int32, device=self.device)
        corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        cells = raymarching.morton3D(corners).long()
        bytes_of = self.grid.bits[cascade * size**3 // 8 :].index_select(0, cells // 8)
        return ((bytes_of >> (cells % 8).to(torch.uint8)) & 1).bool().view(size, size, size)

    def occupied_cells(self):
        """[K] int64: those of the innermost cascade, else of all the others."""
        size = self.grid.size**3
        bits = (self.grid.bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=self.device)) & 1
        cells = bits.view(-1).nonzero()[:, 0]
        inner = cells[cells < size]
        return inner if len(inner) else cells

    def to_world(self, positions):
        """Field space [K, 3] -> world [K, 3]."""
        return uncontract(positions) if self.contract else positions

    def to_field(self, positions):
        """World [K, 3] -> field space [K, 3]."""
        return raymarching.contract(positions.contiguous()) if self.contract else positions

    def inside(self, positions):
        """[K] bool: whether positions [K, 3] of field space lie in the scene's box, outside which nothing is rendered."""
        world = self.to_world(positions)
        return ((world >= self.box[:3]) & (world <= self.box[3:])).all(dim=-1)

    def cells(self, resolutions):
        """Side of a grid cell in field space, a list of floats, for each cascade's number of cells a side; 0 cells count as one."""
        return [2 * half / max(count, 1) for half, count in zip(self.half_sides, resolutions, strict=True)]

    def spacing(self, world, resolutions):
        """Side [K] in world units of the grid cells from which the surface at world positions [K, 3] was made; resolutions: cells a side of
        each cascade."""
        norm = self.to_field(world).abs().amax(dim=-1)
        sides = torch.tensor(self.cells(resolutions), device=world.device)
        inner_faces = torch.tensor(self.half_sides[:-1], device=world.device)
        side = sides[torch.searchsorted(inner_faces, norm)]
        return side * world.abs().amax(dim=-1).clamp(min=1) if self.contract else side


def uncontract(positions):
    """The inverse of raymarching.contract (MERF, arXiv 2302.12249, equation 2).

    Args:
        positions: [K, 3] float32 of max-norm below 2. Those at 2 or beyond, which stand for infinity, come out very far away.
    Returns:
        [K, 3] float32.
    """
    norm, dominant = positions.abs().max(dim=1, keepdim=True)
    far = 1 / (2 - norm).clamp(min=FARTHEST)
    on_axis = torch.zeros_like(positions, dtype=torch.bool).scatter_(1, dominant, True)
    return torch.where(norm > 1, torch.where(on_axis, torch.copysign(far, positions), positions * far), positions)


@torch.no_grad()
def _grid_of(proposal, bound, options, device):
    """An occupancy grid of what a proposal network sees: where it sees nothing the field is never asked, and holds anything."""
    grid = OccupancyGrid(bound, PROPOSAL_GRID[device.type], options.density_thresh).to(device)
    generator = torch.Generator(device).manual_seed(options.seed)
    for _ in range(LOOKS):
        grid.update(lambda positions: volume.density(proposal.density(positions)), generator)
    return grid
