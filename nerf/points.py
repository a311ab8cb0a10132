"""A point cloud of a trained field: where the training views' rays end."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

import raymarching
from nerf.errors import UserError
from nerf.files import write_file
from nerf.mesh_parts.files import write_frame
from nerf.mesh_parts.visibility import windows
from nerf.rays import Views
from nerf.samples import Rays

DRAWN = 2  # rays for each point asked for: some of them end in haze
FEWEST_RAYS = 512  # however few points are asked for: what is alone shows only among others
OPAQUE = 0.8  # opacity from which a ray ends somewhere
AT_ONCE = {"cuda": 2**18, "cpu": 2**13}  # rays composited together
STEEPEST = 0.1  # cosine between ray and normal below which a depth is that of an edge, in between two surfaces
WITNESSES = 3  # other views that are asked about each point
AGREED = 0.05  # share of its distance within which a witness confirms a point; one whose ray ends farther behind looks through it
NEIGHBOURS = 8  # whose distance tells how isolated a point is
ISOLATED = 2.5  # standard deviations of that distance's logarithm
LEFT_OUT = {
    "transparent": "were transparent",
    "at_edges": "met an edge",
    "outside": "ended outside",
    "seen_through": "where others see through",
    "unconfirmed": "where no other sees them",
    "isolated": "alone",
    "beyond_the_count": None,
}  # what becomes of rays that give no point, and how that is said
OUTER, PADDING = 0.001, 0.05  # of the sparse points at each end that do not count for the box, and of its sides that are added


class Cloud(NamedTuple):
    """positions [K, 3], normals [K, 3] unit, colours [K, 3] in [0, 1]; float32 numpy, in the world."""

    positions: np.ndarray
    normals: np.ndarray
    colours: np.ndarray


def export_points(model, scene, options, device, folder, report=None):
    """Writes points.ply and points.json into a folder: at most --export_points points of a model's field, in the world.

    Rays through random pixels of all training views end at their expected depth; three neighbouring rays give the normal, which looks at
    the camera. Left out are rays that stay transparent or graze an edge, ends outside the box of the sparse points and cameras, and
    floaters: ends through which another view looks (the mean depth of two surfaces is in mid-air), that no other view confirms (fog right
    before a camera, which the others do not have in their pictures), or that lie alone.

    Args:
        model: nerf.model.Model, in evaluation mode; scene: nerf.scene.Scene; options: nerf.options.Options, resolved; device: torch.device.
        report: print or alike, or None.
    Returns:
        Cloud.
    Raises:
        UserError: no point is left.
    """
    wanted, folder = options.export_points, Path(folder)
    generator = torch.Generator(device).manual_seed(options.seed)
    views = Views(scene.cameras.select(scene.train), scene.aabb, device)
    left, parts = max(DRAWN * wanted, FEWEST_RAYS), []
    told = {"rays": left, **dict.fromkeys(LEFT_OUT, 0)}
    box = torch.from_numpy(_box(scene)).to(device)
    window = windows(views)
    while left:
        count = min(left, AT_ONCE[device.type])
        parts.append(_ends(model, views, window, box, count, generator, told))
        left -= count
    cloud = Cloud(*map(np.concatenate, zip(*parts)))
    cloud = _chosen(cloud, _together(cloud.positions), told, "isolated")
    if not len(cloud.positions):
        raise UserError(f"There are no points to export: of {told['rays']} rays, {_fates(told)}; train the scene for longer.")
    keep = np.zeros(len(cloud.positions), dtype=bool)
    keep[np.random.default_rng(options.seed).permutation(len(keep))[:wanted]] = True
    cloud = _chosen(cloud, keep, told, "beyond_the_count")
    write_file(folder / "points.ply", ply(cloud))
    write_frame(folder / "points.json", scene, points=len(cloud.positions), **told)
    if report:
        report(f"{len(cloud.positions)} of {wanted} points in {folder / 'points.ply'}; of {told['rays']} rays, {_fates(told)}.")
    return cloud


def _fates(told):
    return ", ".join(f"{told[name]} {words}" for name, words in LEFT_OUT.items() if words)


def ply(cloud):
    """The bytes of a binary PLY file: x y z nx ny nz as float, red green blue as uchar."""
    floats = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    table = np.empty(len(cloud.positions), dtype=floats + [(name, "u1") for name in ("red", "green", "blue")])
    columns = np.concatenate([cloud.positions, cloud.normals, np.round(cloud.colours * 255)], axis=1)
    for name, column in zip(table.dtype.names, columns.T, strict=True):
        table[name] = column
    properties = [f"property {'float' if table.dtype[name] == np.float32 else 'uchar'} {name}" for name in table.dtype.names]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}", *properties, "end_header"]
    return ("\n".join(header) + "\n").encode() + table.tobytes()


@torch.no_grad()
def _ends(model, views, window, box, count, generator, told):
    """(positions, normals, colours) numpy of the rays through `count` random pixels that end well; told: the others are added."""
    device = views.poses.device
    image = torch.randint(len(views.poses), (count,), device=device, generator=generator)
    pixel = (torch.rand((count, 2), device=device, generator=generator) * views.sizes[image]).floor() + 0.5
    centre, rays = _end(model.render, views, image, pixel)
    right, _ = _end(model.render, views, image, pixel + torch.tensor([1.0, 0.0], device=device))
    below, _ = _end(model.render, views, image, pixel + torch.tensor([0.0, 1.0], device=device))
    normals = torch.nn.functional.normalize(torch.linalg.cross(below.places - centre.places, right.places - centre.places), dim=-1)
    opaque = (centre.opacity > OPAQUE) & (right.opacity > OPAQUE) & (below.opacity > OPAQUE)  # NaN compares false
    level = -(normals * rays.directions).sum(dim=-1) > STEEPEST
    inside = ((centre.places > box[:3]) & (centre.places < box[3:])).all(dim=-1)
    for name, good, before in (("transparent", opaque, None), ("at_edges", level, opaque), ("outside", inside, opaque & level)):
        told[name] += int((~good if before is None else before & ~good).sum())
    kept = opaque & level & inside
    chosen = kept.nonzero()[:, 0]
    confirmed, through = _witnessed(model.render, views, window, centre.places[chosen], image[chosen], generator)
    told["seen_through"] += int(through.sum())
    told["unconfirmed"] += int((~confirmed & ~through).sum())
    kept[chosen[through | ~confirmed]] = False
    colours = model.field.shade(
        centre.features[kept] / centre.opacity[kept, None], torch.ones_like(centre.opacity[kept]), rays.directions[kept]
    )
    return tuple(part.cpu().numpy() for part in (centre.places[kept], normals[kept], colours.clamp(0, 1)))


def _witnessed(render, views, window, places, own, generator):
    """Whether any of a few random views with a place [K, 3] in their picture sees it; sees something behind it, or nothing: [K] bool each.

    own: [K] int64, the view that each place is from, which is not asked.
    """
    confirmed = torch.zeros(len(places), dtype=torch.bool, device=places.device)
    through = torch.zeros_like(confirmed)
    framed = _framed(views, window, places).scatter_(1, own[:, None], False)
    order = torch.where(framed, torch.rand(framed.shape, device=places.device, generator=generator), -1.0)
    score, chosen = order.topk(min(WITNESSES, len(views.poses)), dim=1)
    for image, asked in zip(chosen.T.contiguous(), score.T >= 0):
        origins = views.poses[image, :, 3]
        offset = places - origins
        distance = offset.norm(dim=-1)
        directions = offset / distance.clamp(min=1e-9)[:, None]
        near, far = raymarching.near_far_from_aabb(origins, directions, views.aabb, 0.0)
        near, far = torch.maximum(near, views.near[image]), torch.minimum(far, views.far[image])
        count = torch.full((1,), len(image), dtype=torch.int32, device=image.device)
        _, opacity, depth = render.composite(Rays(origins, directions, near, far, image, count))
        asked = asked & (distance > near) & (distance < far)
        ratio = torch.where(opacity > OPAQUE, depth / opacity / distance, torch.inf)
        through |= asked & (ratio > 1 + AGREED)
        confirmed |= asked & ((ratio - 1).abs() <= AGREED)
    return confirmed, through


def _framed(views, window, places):
    """[K, n] bool: which views have which places [K, 3] in their pictures, hidden or not."""
    return torch.stack([_inside(place, views.poses[i], window[i], places) for i, place in enumerate(views.poses[:, :, 3])], dim=1)


def _inside(place, pose, window, places):
    local = (places - place) @ pose[:, :3]
    slope = local[:, :2] / -local[:, 2:]
    return (local[:, 2] < 0) & ((slope > window[:2]) & (slope < window[2:])).all(dim=-1)


class _End(NamedTuple):
    """places [N, 3] at the expected depth; opacity [N]; features [N, C - 1]."""

    places: torch.Tensor
    opacity: torch.Tensor
    features: torch.Tensor


def _end(render, views, image, pixel):
    rays = views.rays(image, pixel)
    features, opacity, depth = render.composite(rays)
    places = rays.origins + (depth / opacity.clamp(min=OPAQUE))[:, None] * rays.directions
    return _End(places, opacity, features), rays


def _together(positions):
    """[K] bool: the points that are not much farther from their neighbours than points usually are (after Rusu et al. 2008, section 3).

    All of them where there are too few to judge by.
    """
    if len(positions) <= NEIGHBOURS:
        return np.ones(len(positions), dtype=bool)
    distances, _ = cKDTree(positions).query(positions, k=NEIGHBOURS + 1, workers=-1)
    lengths = np.log(distances[:, -1].clip(1e-12))
    return lengths <= lengths.mean() + ISOLATED * lengths.std()


def _chosen(cloud, keep, told, name):
    told[name] += int((~keep).sum())
    return Cloud(*(column[keep] for column in cloud))


def _box(scene):
    """The box [6] float32 of the sparse points, outliers apart, and the cameras, within the scene's; that one where there are no points."""
    if scene.points is None:
        return scene.aabb
    places = scene.cameras.poses[:, :, 3]
    low = np.minimum(np.quantile(scene.points, OUTER, axis=0), places.min(axis=0))
    high = np.maximum(np.quantile(scene.points, 1 - OUTER, axis=0), places.max(axis=0))
    padding = PADDING * (high - low)
    return np.concatenate([np.maximum(low - padding, scene.aabb[:3]), np.minimum(high + padding, scene.aabb[3:])]).astype(np.float32)
