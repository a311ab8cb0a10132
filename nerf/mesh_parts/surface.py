"""The iso surface of a density, slab by slab and block by block: the memory needed grows with the surface, and with one slab of samples.

Resolution R: R cells and R + 1 corners a side. A slab is BLOCK cells thick; each corner is looked at once, the corners between slabs and
blocks are shared. So both sides of a border agree to the last bit, and vertices are welded by the grid edge that each of them lies on.
"""

from typing import NamedTuple

import mcubes
import numpy as np
import torch
from torch.nn import functional as F

from nerf.errors import UserError

BLOCK = 32
AT_ONCE = {"cuda": 2**21, "cpu": 2**17}  # corners handed to the field together
STEEPEST = 8.0  # logarithms farther than this from the level are all alike
NEAREST = 1e-3  # none is closer: a vertex never falls on a corner, where it would belong to several edges


class Mesh(NamedTuple):
    """vertices [V, 3] float32; faces [T, 3] int64, counter-clockwise seen from outside."""

    vertices: np.ndarray
    faces: np.ndarray


class Region(NamedTuple):
    """A cube that is looked at, and what of it. half: half its side; resolution: R; inner: half the side of the cube in its middle that is
    left out (0: none); occupied: [G, G, G] bool, its occupied cells; inside: positions [K, 3] -> [K] bool, what else is looked at."""

    half: float
    resolution: int
    inner: float
    occupied: torch.Tensor
    inside: object


@torch.no_grad()
def extract(log_density, level, region):
    """The surface on which a density has a level, within a Region: in occupied cells and their neighbours. It ends, open, where these end.

    Args:
        log_density: positions [K, 3] float32 on the device -> [K]; level: logarithm of the density sought.
    Returns:
        Mesh, perhaps of nothing.
    Raises:
        UserError: a density is not a number.
    """
    planes = _Planes(log_density, level, region)
    count = region.resolution
    parts = _Parts(count)
    values = np.empty((BLOCK + 1, count + 1, count + 1), dtype=np.float32)
    known = np.empty(values.shape, dtype=bool)
    values[0], known[0] = planes.look(0)
    for first in range(0, count, BLOCK):
        thick = min(BLOCK, count - first)
        for i in range(1, thick + 1):
            values[i], known[i] = planes.look(first + i)
        _add_slab(parts, first, values[: thick + 1], known[: thick + 1])
        values[0], known[0] = values[thick], known[thick]
    vertices, faces = parts.welded()
    vertices = (region.half * (2 * vertices / count - 1)).astype(np.float32)
    if region.inner:
        outside = np.abs(vertices[faces].mean(axis=1)).max(axis=1) > region.inner
        vertices, faces = used(vertices, faces[outside])
    return Mesh(vertices, faces)


def used(vertices, faces):
    """The vertices that faces [T, 3] use, and the faces renumbered."""
    chosen = np.zeros(len(vertices), dtype=bool)
    chosen[faces] = True
    number = np.cumsum(chosen) - 1
    return vertices[chosen], number[faces]


class _Planes:
    """Looks at the corners of one plane x = constant after the other."""

    def __init__(self, log_density, level, region):
        self.log_density, self.level, self.region = log_density, level, region
        count, size, device = region.resolution, region.occupied.shape[0], region.occupied.device
        self.axis = torch.linspace(-region.half, region.half, count + 1, device=device)
        self.cell = ((self.axis / region.half + 1) * (size / 2)).long().clamp(0, size - 1)
        self.wanted = F.max_pool3d(region.occupied[None].float(), 3, stride=1, padding=1)[0] > 0
        hidden = region.inner - 4 * region.half / count  # two cells within the inner cube: near enough for the cells at its faces
        self.hidden = self.axis.abs() < hidden if region.inner else torch.zeros_like(self.axis, dtype=torch.bool)

    def look(self, i):
        """values, known [R + 1, R + 1] of plane i, numpy: log density less the level, positive within; whether the corner was looked at."""
        mask = self.wanted[self.cell[i]].index_select(0, self.cell).index_select(1, self.cell)
        mask = mask & ~(self.hidden[i] & self.hidden[:, None] & self.hidden[None, :])
        y, z = mask.nonzero(as_tuple=True)
        positions = torch.stack([self.axis[i].expand(len(y)), self.axis[y], self.axis[z]], dim=-1)
        inside = self.region.inside(positions)
        y, z, positions = y[inside], z[inside], positions[inside]
        values = torch.full(mask.shape, -STEEPEST, device=mask.device)
        known = torch.zeros_like(mask)
        if len(y):
            found = torch.cat([self.log_density(part).float() for part in positions.split(AT_ONCE[mask.device.type])]) - self.level
            if found.isnan().any():
                raise UserError(
                    "There is no mesh to make: the density of the field is not a number in places; train anew, with a lower --lr."
                )
            values[y, z] = torch.copysign(found.abs().clamp(NEAREST, STEEPEST), found)
            known[y, z] = True
        return values.cpu().numpy(), known.cpu().numpy()


def _add_slab(parts, first, values, known):
    """Marching cubes of the blocks of a slab of corners; first: the slab's first plane."""
    count = parts.count
    for y in range(0, count, BLOCK):
        for z in range(0, count, BLOCK):
            block = np.s_[:, y : min(y + BLOCK, count) + 1, z : min(z + BLOCK, count) + 1]
            seen = known[block]
            if not seen.any() or values[block].max() < 0 or values[block].min() > 0:
                continue
            vertices, faces = mcubes.marching_cubes(np.ascontiguousarray(values[block]), 0.0)
            faces = faces.astype(np.int64)
            whole = seen[:-1] & seen[1:]
            whole = whole[:, :-1] & whole[:, 1:]
            whole = whole[:, :, :-1] & whole[:, :, 1:]
            cell = np.minimum(vertices[faces].mean(axis=1).astype(np.int64), np.array(whole.shape) - 1)
            parts.add(*used(vertices, faces[whole[tuple(cell.T)]]), np.array([first, y, z]))


class _Parts:
    """Meshes of blocks, to be welded: each vertex lies within one edge of the grid, which has a number."""

    def __init__(self, count):
        self.count, self.keys, self.places, self.faces, self.total = count, [], [], [], 0

    def add(self, vertices, faces, corner):
        """A block's vertices [V, 3] and faces [T, 3]; corner [3]: of the block."""
        base = np.floor(vertices)
        axis = np.argmax(vertices - base, axis=1)
        x, y, z = (base.astype(np.int64) + corner).T
        side = self.count + 1
        self.keys.append(((x * side + y) * side + z) * 3 + axis)
        self.places.append((vertices + corner).astype(np.float32))
        self.faces.append((faces + self.total).astype(np.int32))
        self.total += len(vertices)

    def welded(self):
        """vertices [V, 3] float32 in cells, faces [T, 3] int64."""
        if not self.total:
            return np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.int64)
        _, first, number = np.unique(np.concatenate(self.keys), return_index=True, return_inverse=True)
        self.keys.clear()
        return np.concatenate(self.places)[first], number[np.concatenate(self.faces)]
