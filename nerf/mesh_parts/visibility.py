"""What the training cameras see of a mesh: the rest was made up by the field."""

import numpy as np
import torch

from nerf.mesh_parts.raster import Pinhole, rasterise

LONGEST = 800  # pixels of the longer side of the picture in which a view is judged
TOLERANCE = 0.01  # a vertex this little behind what its pixel sees, as a share of its depth, is seen too
LEAST_VIEWS = 2  # that must see a face: what one camera alone sees, such as fog right before it, no other has checked
RINGS = 2  # of faces around those seen that are kept: an edge without fringes
WIDEST = 2.0  # slope, 63 degrees: a pinhole picture of what lies further out would be mostly margin
BORDER = 33  # points on each side of a picture from which its window is measured


@torch.no_grad()
def seen_faces(mesh, views, report=None):
    """[T] bool numpy: the faces of a Mesh in the world that LEAST_VIEWS of the views see, and a few around them.

    Each view is a z-buffer of the mesh through a pinhole as wide as the view's undistorted picture. A face counts as seen where a pixel
    shows it, or where one of its vertices is no farther than what its pixel shows. Beyond WIDEST of a fisheye lens all is taken as seen.

    Args:
        views: nerf.rays.Views; report: nerf.evaluation.Progress or None.
    """
    device = views.poses.device
    vertices, faces = torch.from_numpy(mesh.vertices).to(device), torch.from_numpy(mesh.faces).to(device)
    count = torch.zeros(len(faces), dtype=torch.int32, device=device)
    for i in range(len(views.poses)):
        camera, cut = pinhole(views, i, LONGEST)
        x, y, depth = camera.project(vertices)
        buffer = rasterise((x, y, depth), faces, camera.width, camera.height)
        face = torch.zeros(len(faces) + 1, dtype=torch.bool, device=device)  # the last stands for no face
        face[buffer.face] = True
        px, py = x.floor().long(), y.floor().long()
        framed = (depth > 0) & (px >= 0) & (px < camera.width) & (py >= 0) & (py < camera.height)
        pixel = torch.where(framed, py * camera.width + px, 0)
        vertex = framed & (1 / depth >= buffer.closeness[pixel] * (1 - TOLERANCE))
        if cut:
            vertex |= ~framed
        count += face[:-1] | vertex[faces].any(dim=1)
        if report:
            report.update(i + 1)
    seen = count >= min(LEAST_VIEWS, len(views.poses))
    for _ in range(RINGS):
        vertex = torch.zeros(len(vertices), dtype=torch.bool, device=device)
        vertex[faces[seen]] = True
        seen = vertex[faces].any(dim=1)
    return seen.cpu().numpy()


def pinhole(views, index, longest):
    """A Pinhole that sees what view `index` sees, `longest` pixels long, and whether WIDEST cuts it."""
    whole = windows(views, [index])[0]
    cut = bool((whole.abs() > WIDEST).any())
    window = whole.clamp(-WIDEST, WIDEST).tolist()
    aspect = (window[2] - window[0]) / (window[3] - window[1])
    width, height = (longest, round(longest / aspect)) if aspect >= 1 else (round(longest * aspect), longest)
    return Pinhole(views.poses[index], tuple(window), max(1, width), max(1, height)), cut


def windows(views, chosen=None):
    """[k, 4]: least x, y and greatest x, y of what the chosen views (default all) see, as slopes: x right, y up, at depth 1.

    They are measured on the rays of the pictures' borders.
    """
    along = torch.linspace(0, 1, BORDER, device=views.poses.device)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    border = torch.cat([torch.stack(pair, -1) for pair in ((along, zero), (along, one), (zero, along), (one, along))])
    found = []
    for i in range(len(views.poses)) if chosen is None else chosen:
        image = torch.full((len(border),), i, dtype=torch.int64, device=border.device)
        local = views.rays(image, border * views.sizes[i]).directions @ views.poses[i, :, :3]
        slope = local[:, :2] / (-local[:, 2:]).clamp(min=1e-6)
        found.append(torch.cat([slope.amin(dim=0), slope.amax(dim=0)]))
    return torch.stack(found)


def split(kept, meshes):
    """The parts of kept [T] numpy that belong to each of several meshes, in their order."""
    return np.split(kept, np.cumsum([len(mesh.faces) for mesh in meshes])[:-1])
