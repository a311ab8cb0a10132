"""A texture for a mesh: its faces laid out flat in a picture, and the colours of the surface at each of the picture's pixels (texels)."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from nerf.mesh_parts.raster import corner_weights, interpolated, rasterise

PIECE = 24  # cells: side of the cubes that are unwrapped apart, since the time that a piece takes grows with the square of its faces
PADDING = 4  # texels between charts, so that no chart shows a trace of its neighbours where a texture is filtered
AT_ONCE = 2**20  # texels coloured together


class Layout(NamedTuple):
    """Where a mesh's faces lie in a picture.

    source [W] int64: the mesh's vertex that each corner of a chart is; faces [T, 3] int64: into these, in the order of the mesh's;
    places [W, 2] float32: in texels, x right and y down; width, height of the picture.
    """

    source: np.ndarray
    faces: np.ndarray
    places: np.ndarray
    width: int
    height: int

    @property
    def uv(self):
        """[W, 2] float32 in [0, 1], v upwards."""
        u, v = self.places.T / np.float32([[self.width], [self.height]])
        return np.stack([u, 1 - v], axis=1)

    def look(self, picture):
        """What nerf.mesh_parts.preview asks of a skin, for a picture [H, W, 3] tensor of this layout: the nearest texel's colour."""
        faces, places = (torch.from_numpy(array).to(picture.device) for array in (self.faces, self.places))

        def colours(face, weight):
            x, y = interpolated(places, faces[face], weight).long().T
            return picture[y.clamp(0, self.height - 1), x.clamp(0, self.width - 1)]

        return colours


def unwrap(meshes, cells, longest):
    """The Layout of several meshes together, in a picture whose longer side is `longest` texels.

    Charts are found and packed by the library xatlas. Each mesh is measured in cells of the grid that it was made with, so that what is far
    has the texels that its detail is worth, and not those that its size would take.

    Args:
        meshes: list of Mesh in field space, not all empty; cells: side of a cell of each.
    Raises:
        ImportError: xatlas is not installed.
    """
    from xatlas import Atlas, ChartOptions, PackOptions

    atlas, sources, rows, vertices_before, faces_before = Atlas(), [], [], 0, 0
    for mesh, cell in zip(meshes, cells, strict=True):
        vertices = (mesh.vertices / cell).astype(np.float32)
        for row in _pieces(vertices, mesh.faces):
            source, faces = np.unique(mesh.faces[row], return_inverse=True)
            atlas.add_mesh(vertices[source], faces.reshape(-1, 3).astype(np.uint32))
            sources.append(source + vertices_before)
            rows.append(row + faces_before)
        vertices_before, faces_before = vertices_before + len(vertices), faces_before + len(mesh.faces)
    packing = PackOptions()
    packing.resolution, packing.padding = longest, PADDING
    atlas.generate(ChartOptions(), packing)
    scale = longest / max(atlas.width, atlas.height)  # the size asked for is met roughly, since charts are packed as they come
    parts, first = [], 0
    for i, source in enumerate(sources):
        chosen, faces, uv = atlas[i]
        parts.append((source[chosen], faces.astype(np.int64) + first, uv * np.float32([atlas.width, atlas.height]) * scale))
        first += len(chosen)
    source, faces, places = map(np.concatenate, zip(*parts))
    order = np.argsort(np.concatenate(rows))
    width, height = (max(1, round(side * scale)) for side in (atlas.width, atlas.height))
    return Layout(source, faces[order], places, width, height)


def bake(mesh, normals, layout, colours_at, device):
    """The picture [H, W, 3] float32 tensor of a Layout, in [0, 1]; texels that no face covers have the colour of the nearest that one does.

    Args:
        mesh: Mesh in the world; normals: [V, 3] float32, unit; device: torch.device.
        colours_at: positions [K, 3], normals [K, 3], float32 tensors on the device -> colours [K, 3] float32 numpy.
    """
    vertices, normals, corners = (torch.from_numpy(array).to(device) for array in (*mesh[:1], normals, mesh.faces))
    places, faces = (torch.from_numpy(array).to(device) for array in (layout.places, layout.faces))
    points = (places[:, 0], places[:, 1], torch.ones(len(places), device=device))
    buffer = rasterise(points, faces, layout.width, layout.height)
    _add_slivers(buffer.face, places[faces], layout.width)
    covered = buffer.face >= 0
    picture = np.zeros((layout.height * layout.width, 3), dtype=np.float32)
    for texels in covered.nonzero()[:, 0].split(AT_ONCE):
        weight, of_face = _within(corner_weights(points, faces, buffer, texels, layout.width)), corners[buffer.face[texels]]
        towards = torch.nn.functional.normalize(interpolated(normals, of_face, weight), dim=-1)
        picture[texels.cpu().numpy()] = colours_at(interpolated(vertices, of_face, weight), towards)
    empty = ~covered.view(layout.height, layout.width).cpu().numpy()
    nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
    return torch.from_numpy(picture.reshape(layout.height, layout.width, 3)[tuple(nearest)]).to(device)


def _add_slivers(face, corners, width):
    """Gives faces that cover no texel's centre, corners [T, 3, 2], the texel that their middle is in, where it is free: face [H W] is changed."""
    shown = torch.zeros(len(corners), dtype=torch.bool, device=face.device)
    shown[face[face >= 0]] = True
    slivers = (~shown).nonzero()[:, 0]
    x, y = corners[slivers].mean(dim=1).long().T
    texel = (y * width + x).clamp(max=len(face) - 1)
    free = face[texel] < 0
    face.scatter_reduce_(0, texel[free], slivers[free], "amax")


def _within(weight):
    """Weights [K, 3] of places beside their triangle as those of places in it; equal ones for a triangle without area."""
    weight = weight.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    total = weight.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weight / total.clamp(min=1e-9), 1 / 3)


def _pieces(vertices, faces):
    """Rows of faces, a list of [k] int64: those whose middles lie in the same cube of side PIECE."""
    if not len(faces):
        return []
    cube = np.floor(vertices[faces].mean(axis=1) / PIECE).astype(np.int64)
    cube -= cube.min(axis=0)
    _, number = np.unique(np.ravel_multi_index(cube.T, cube.max(axis=0) + 1), return_inverse=True)
    order = np.argsort(number, kind="stable")
    return np.split(order, np.cumsum(np.bincount(number))[:-1])
