"""A picture of a mesh: as training cameras see it, and from outside."""

import math

import cv2
import numpy as np
import torch

from nerf.images import write_png
from nerf.mesh_parts.raster import Pinhole, corner_weights, rasterise
from nerf.mesh_parts.visibility import pinhole

LONGEST = 480  # pixels of a view's longer side
FINER = 2  # pixels drawn for each shown, along each side
VIEWS = 3  # of training cameras
ELEVATION, OPENING = 0.6, 0.5  # of the view from outside: radians above the horizon, slope at its edge
CLAY = 0.8


@torch.no_grad()
def write_preview(path, mesh, look, views):
    """A PNG with a column a view: above in the mesh's colours, below as clay lit from the camera.

    The first columns are training cameras, evenly chosen; the last looks from outside and above, and sees no face from behind, so that a
    room can be looked into.

    Args:
        mesh: Mesh in the world; views: nerf.rays.Views of the training cameras, on the device.
        look: the mesh's skin, a function of faces [K] int64 and weights of their corners [K, 3] -> colours [K, 3] in [0, 1].
    """
    device = views.poses.device
    vertices, faces = (torch.from_numpy(array).to(device) for array in mesh)
    chosen = torch.linspace(0, len(views.poses), VIEWS + 1)[:-1].long().tolist()
    cameras = [(pinhole(views, i, LONGEST * FINER)[0], False) for i in chosen] + [(_from_outside(views, vertices), True)]
    columns = [_column(vertices, faces, look, *camera) for camera in cameras]
    height = max(len(picture) for column in columns for picture in column)
    rows = [
        [np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0)), constant_values=1.0) for picture in row] for row in zip(*columns)
    ]
    write_png(path, np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def _column(vertices, faces, look, camera, one_sided):
    """The two pictures [H, W, 3] float32 numpy of a camera."""
    points = camera.project(vertices)
    buffer = rasterise(points, faces, camera.width, camera.height, one_sided)
    hit = (buffer.face >= 0).nonzero()[:, 0]
    face = buffer.face[hit]
    pictures = []
    for shown in (look(face, corner_weights(points, faces, buffer, hit, camera.width)), _clay(vertices[faces[face]], camera)):
        picture = torch.ones((camera.height * camera.width, 3), device=vertices.device)
        picture[hit] = shown
        picture = picture.view(camera.height, camera.width, 3).cpu().numpy()
        pictures.append(cv2.resize(picture, (camera.width // FINER, camera.height // FINER), interpolation=cv2.INTER_AREA))
    return pictures


def _clay(corners, camera):
    """Grey [K, 3] of triangles [K, 3, 3], brightest where they face the camera."""
    normal = torch.nn.functional.normalize(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1)
    towards = torch.nn.functional.normalize(camera.pose[:, 3] - corners.mean(dim=1), dim=-1)
    return (normal * towards).sum(dim=-1).abs()[:, None].expand(-1, 3) * CLAY


def _from_outside(views, vertices):
    """A camera outside the mesh, on the first view's side; what lies far out (most of the outer cascades) is left beyond its edges."""
    low, high = (torch.quantile(_some(vertices), share, dim=0) for share in (0.1, 0.9))
    centre, radius = (low + high) / 2, (high - low).norm() / 2 * 1.3
    side = views.poses[0, :2, 3] - centre[:2]
    angle = torch.atan2(side[1], side[0])
    flat = math.cos(ELEVATION)
    back = torch.stack([flat * torch.cos(angle), flat * torch.sin(angle), torch.full_like(angle, math.sin(ELEVATION))])
    right = torch.stack([-torch.sin(angle), torch.cos(angle), torch.zeros_like(angle)])
    up = torch.linalg.cross(back, right)
    place = centre + back * radius * math.hypot(1, 1 / OPENING)
    pose = torch.stack([right, up, back, place], dim=1)
    return Pinhole(pose, (-OPENING, -OPENING, OPENING, OPENING), LONGEST * FINER, LONGEST * FINER)


def _some(rows, most=100_000):
    """At most so many of the rows, evenly chosen."""
    return rows[:: -(-len(rows) // most)]
